"""The HTTP layer: routes, schemas, text and streaming. Knows text and JSON; never touches a tensor."""
