"""Settings of `drafthouse serve`: one list, one precedence rule.

    built-in default  <  configuration file  <  environment (DRAFTHOUSE_*)  <  command-line flag

Every setting has the same name everywhere: `max_seqs` in the file, `DRAFTHOUSE_MAX_SEQS`, `--max-seqs`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AnyHttpUrl, BaseModel, ConfigDict, Field, ValidationError, field_validator

log = logging.getLogger(__name__)

PREFIX = "DRAFTHOUSE_"
WHOLE_VOCABULARY = "full"  # as requests name it


class ConfigError(ValueError):
    """A setting is unknown, of the wrong type or out of range; the message names it and where it came from."""


class EndpointSettings(BaseModel):
    """An HTTP endpoint that votes ask."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: AnyHttpUrl
    timeout_s: float = Field(30.0, gt=0, allow_inf_nan=False)
    api_key_env: str | None = None  # the environment variable that holds its bearer token


ScorerName = PartName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class ServeConfig(BaseModel):
    """Everything `drafthouse serve` can be told."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    model: str = Field("drafthouse-tiny", description="embedded model name, folder or hub id")
    draft_model: str | None = Field(
        None, description="a second model with the same vocabulary: drafts for the first, and is served beside it"
    )
    draft_ranking: str | None = Field(None, description="ranking of tokens by 'drafthouse rank', for draft_vocab")
    draft_vocab: dict[PartName, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict, description="NAME=SIZE of a part of the vocabulary that drafts may be limited to"
    )
    spec_max_len: int = Field(16, ge=0, le=32, description="longest draft of any request; 0 switches speculation off")
    spec_past_outputs: bool = Field(False, description="drafts may come from earlier outputs of the same API key")
    spec_past_outputs_s: float = Field(
        86_400.0, gt=0, allow_inf_nan=False, description="seconds that such outputs are remembered"
    )
    require_lossless: bool = Field(False, description="refuse verifiers that change the law of the output")
    ngrams: str | None = Field(None, description="n-gram tables of 'drafthouse index', for superposed decoding")
    served_name: str | None = Field(None, description="id of the model in the API; default: its name")
    runner: Literal["torch", "vllm"] = Field("torch", description="what executes the model")
    vllm_args: dict[str, Any] = Field(
        default_factory=dict, description="NAME=VALUE of an argument of vLLM's engine, by its own name"
    )
    vllm_native: bool = Field(
        True, description="vLLM draws plain requests without a seed itself, faster, with random numbers of its own"
    )
    vllm_filter_mode: Literal["auto", "never"] = Field(
        "auto", description="while vLLM speculates it draws from rows that samplers leave, which accepts more drafts"
    )
    headless: bool = Field(False, description="compute for a server on another machine, without HTTP")
    device: str | None = Field(None, description="cpu, cuda, cuda:1; default: cuda when present")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(None, description="default: float32 on CPU")
    api_key: list[str] = Field(default_factory=list, description="accepted bearer tokens; none: no check")
    max_model_len: int | None = Field(None, ge=1, description="context limit; default: the model's")
    max_seqs: int | None = Field(None, ge=1, description="sequences decoded at once; 64 on CPU, 256 on CUDA")
    max_batch_tokens: int | None = Field(None, ge=1, description="tokens computed per step; 512 on CPU, 8192 on CUDA")
    chunk_tokens: int | None = Field(None, ge=1, description="tokens of one prompt per step; lower bounds latency")
    kv_bytes: int | None = Field(None, ge=1, description="memory for keys and values")
    page_size: int | None = Field(None, ge=1, description="tokens per KV page, a power of two; fast on CUDA from 256")
    max_queued_requests: int = Field(256, ge=0, description="waiting requests beyond which the answer is 503")
    max_queued_tokens: int | None = Field(
        None, ge=1, description="waiting prompt tokens beyond which the answer is 503"
    )
    max_body_bytes: int = Field(16 * 2**20, ge=1024, description="largest request body")
    max_k: int = Field(512, ge=1, description="largest number of samples of a vote")
    vote_ttl_s: float = Field(3600.0, gt=0, allow_inf_nan=False, description="seconds that a stored vote is kept")
    max_votes: int = Field(1024, ge=1, description="stored votes")
    vote_bytes: int = Field(256 * 2**20, ge=2**20, description="memory for stored votes")
    threads: int | None = Field(None, ge=1, description="CPU threads of the model")
    replay: bool = Field(
        True, description="replay a traced forward pass, on CUDA graphs of it, where the logits are the same"
    )
    grace_s: float = Field(30.0, ge=0, description="seconds running requests get to finish after SIGTERM")
    cors_origins: list[str] = Field(default_factory=list, description="origins allowed to call from a browser")
    allow_chat_template: bool = Field(False, description="accept a chat_template in requests")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="how much is logged")
    scorers: dict[ScorerName, EndpointSettings] = Field(
        default_factory=dict, description="NAME=URL of an HTTP endpoint that scores the samples of votes"
    )
    code_executor: EndpointSettings | None = Field(
        None, description="URL of a sandbox that runs the programs of votes against tests"
    )
    presets: dict[str, dict[str, Any]] = Field(default_factory=dict, description="named request fields (file only)")

    @field_validator("api_key", "cors_origins", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        """Commas separate several, wherever the text comes from."""
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            return value
        parts = [part.strip() for text in texts for part in text.split(",") if part.strip()]
        if texts and not parts:  # an unset variable of a script must not open the door
            raise ValueError("is empty")
        return parts

    @field_validator("code_executor", mode="before")
    @classmethod
    def _from_url(cls, value: Any) -> Any:
        """Flags and variables say the URL alone."""
        return {"url": value} if isinstance(value, str) else value

    @field_validator("scorers", mode="before")
    @classmethod
    def _from_pairs(cls, value: Any) -> Any:
        """NAME=URL as flags and variables say it; files hold a mapping."""
        pairs = _pairs(value, "NAME=URL")
        return value if pairs is None else {name: {"url": url} for name, url in pairs.items()}

    @field_validator("vllm_args", mode="before")
    @classmethod
    def _arguments(cls, value: Any) -> Any:
        """NAME=VALUE as flags and variables say it, or one mapping; files hold a mapping. Values are YAML."""
        if isinstance(value, str) and value.lstrip().startswith("{"):
            return _yaml(value)
        pairs = _pairs(value, "NAME=VALUE")
        given = value if pairs is None else {name: _yaml(text) for name, text in pairs.items()}
        if not isinstance(given, Mapping):
            return given
        return {str(name).replace("-", "_"): one for name, one in given.items()}

    @field_validator("draft_vocab", mode="before")
    @classmethod
    def _sizes(cls, value: Any) -> Any:
        """NAME=SIZE as flags and variables say it; files hold a mapping."""
        sizes = _pairs(value, "NAME=SIZE") or value
        if isinstance(sizes, Mapping) and WHOLE_VOCABULARY in sizes:
            raise ValueError(f"'{WHOLE_VOCABULARY}' is the name of the whole vocabulary")
        return sizes


def _yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"'{text}' is not valid YAML") from None


def _pairs(value: Any, form: str) -> dict[str, str] | None:
    """What NAME=... texts say, in one string with commas between several. None: the value is no text."""
    texts = value.split(",") if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        return None
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, said = text.strip().partition("=")
        if not equals:
            raise ValueError(f"'{text}' must be {form}")
        if name in pairs:
            raise ValueError(f"'{name}' is given twice")
        pairs[name] = said
    return pairs


def load_config(flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None = None) -> ServeConfig:
    """Merge the three sources. Flags that are None were not given. Raises ConfigError."""
    merged: dict[str, Any] = {}
    source: dict[str, str] = {}
    for name, value in _read_file(file).items():
        merged[name], source[name] = value, f"in {file}"
    if environment.get(PREFIX + "PRESETS"):
        raise ConfigError(f"presets belong into the configuration file, not into {PREFIX}PRESETS")
    for name in ServeConfig.model_fields:
        key = PREFIX + name.upper()
        if name != "presets" and environment.get(key):
            merged[name], source[name] = environment[key], f"from {key}"
    for key in environment.keys() - {PREFIX + name.upper() for name in (*ServeConfig.model_fields, "config")}:
        if key.startswith(PREFIX):  # no error: orchestrators put variables of their own beside ours
            log.warning("the environment variable %s is not a setting", key)
    for name, value in flags.items():
        if value is not None and value != []:
            merged[name], source[name] = value, f"from --{name.replace('_', '-')}"
    try:
        return ServeConfig(**merged)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
            known = ", ".join(sorted(ServeConfig.model_fields))
            raise ConfigError(f"unknown setting '{name}' {source.get(name, '')}; known: {known}") from None
        message = first["msg"].removeprefix("Value error, ")
        path = ".".join(map(str, first["loc"]))
        raise ConfigError(f"setting '{path}' {source.get(name, '')}: {message}") from None


def _read_file(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        content = yaml.safe_load(file.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{file} must hold a mapping of settings")
    return {str(name).replace("-", "_"): value for name, value in content.items()}
