"""What LeaderWorkerSet's API accepts, without its pod templates, which are those of Kubernetes.

Field names, types and values as in the v1 API of github.com/kubernetes-sigs/lws (api/leaderworkerset/v1, commit
024af084), written down anew.
"""

from __future__ import annotations

from typing import Any

_COUNT = {"type": "integer", "minimum": 0}
_NUMBER_OR_SHARE = {"anyOf": [_COUNT, {"type": "string", "pattern": r"^\d+%$"}]}


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": properties}


SCHEMA = _object(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "leaderworkerset.x-k8s.io/v1"},
    kind={"const": "LeaderWorkerSet"},
    metadata={"type": "object", "required": ["name"]},
    spec=_object(
        ("leaderWorkerTemplate",),
        replicas=_COUNT,
        startupPolicy={"enum": ["LeaderCreated", "LeaderReady"]},
        networkConfig=_object(("subdomainPolicy",), subdomainPolicy={"enum": ["Shared", "UniquePerReplica"]}),
        rolloutStrategy=_object(
            ("type",),
            type={"const": "RollingUpdate"},
            rollingUpdateConfiguration=_object(
                partition=_COUNT, maxUnavailable=_NUMBER_OR_SHARE, maxSurge=_NUMBER_OR_SHARE
            ),
        ),
        leaderWorkerTemplate=_object(
            ("workerTemplate",),
            leaderTemplate={"type": "object"},
            workerTemplate={"type": "object"},
            size={"type": "integer", "minimum": 1},
            restartPolicy={"enum": ["Default", "RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "None"]},
            subGroupPolicy=_object(
                subGroupPolicyType={"enum": ["LeaderWorker", "LeaderExcluded"]},
                subGroupSize={"type": "integer", "minimum": 1},
            ),
            volumeClaimTemplates={"type": "array"},
            persistentVolumeClaimRetentionPolicy={"type": "object"},
        ),
    ),
)
