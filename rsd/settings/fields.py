"""Every setting of rsd: its type, default, bounds and one-line explanation.

`load.py` reads them from flags, environment and file; `words.py` prints `rsd.example.toml`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct


def state_dir(s: Settings) -> Path:
    """Where LMDB, spool, lock and live.json lie."""
    return Path(s.state_dir) if s.state_dir else Path(s.output_dir) / "state"


class Generation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[generation] The model that makes the candidates: a vLLM server, or several."""

    api: Annotated[
        tuple[str, ...],
        Meta(min_length=1, description="Base URLs of the vLLM servers, up to and with /v1."),
    ] = ("http://localhost:8000/v1",)
    key: Annotated[
        str, Meta(description="API key, if the servers ask for one. Better: key_file.")
    ] = ""
    key_file: Annotated[str, Meta(description="File that holds the key and nothing else.")] = ""
    model: Annotated[str, Meta(description="Model name; empty: the only model served.")] = ""
    workers: Annotated[
        Annotated[int, Meta(ge=1, le=4096)] | None,
        Meta(description="Most requests in flight, all servers together."),
    ] = None
    requests_per_minute: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="Most requests a minute, all processes together; absent: no limit."),
    ] = None
    input_tokens_per_minute: Annotated[
        Annotated[float, Meta(gt=0)] | None, Meta(description="The same of input tokens.")
    ] = None
    output_tokens_per_minute: Annotated[
        Annotated[float, Meta(gt=0)] | None, Meta(description="The same of output tokens.")
    ] = None
    timeout: Annotated[
        float, Meta(gt=0, le=86400, description="Seconds that one call may take in all.")
    ] = 1200.0
    max_tokens: Annotated[int, Meta(ge=1, description="Longest candidate, in tokens.")] = 2048
    max_n: Annotated[
        int, Meta(ge=1, le=1024, description="Most candidates asked for in one request.")
    ] = 16
    ca_file: Annotated[str, Meta(description="Own certificate authority (PEM) for https.")] = ""
    pictures: Annotated[
        Literal["data", "uuid", "file"],
        Meta(
            description="data: bytes in each request; uuid: once, then by name (vLLM); file: by "
            "path, for a vLLM here with --allowed-local-media-path STATE/spool."
        ),
    ] = "data"
    affinity: Annotated[
        bool,
        Meta(
            description="With several servers: all candidates of an image from one that has it in "
            "its caches, while that one has room."
        ),
    ] = True

    def __repr__(self) -> str:
        return f"Generation(api={self.api!r}, model={self.model!r})"


class Grading(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[grading] The stronger model that scores: o4-mini or any OpenAI-compatible endpoint."""

    api: Annotated[
        tuple[str, ...], Meta(description="Base URLs of the grader, up to and with /v1. Required.")
    ] = ()
    key: Annotated[
        str, Meta(description="API key. Better: key_file, RSD_GRADING_KEY or a systemd credential.")
    ] = ""
    key_file: Annotated[str, Meta(description="File that holds the key and nothing else.")] = ""
    model: Annotated[str, Meta(description="Model that grades.")] = "o4-mini"
    workers: Annotated[
        Annotated[int, Meta(ge=1, le=4096)] | None,
        Meta(description="Most requests in flight, all endpoints together."),
    ] = None
    requests_per_minute: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="Most requests a minute, all processes together; absent: no limit."),
    ] = None
    input_tokens_per_minute: Annotated[
        Annotated[float, Meta(gt=0)] | None, Meta(description="The same of input tokens.")
    ] = None
    output_tokens_per_minute: Annotated[
        Annotated[float, Meta(gt=0)] | None, Meta(description="The same of output tokens.")
    ] = None
    timeout: Annotated[
        float, Meta(gt=0, le=86400, description="Seconds that one call may take in all.")
    ] = 1200.0
    max_tokens: Annotated[
        int, Meta(ge=16, description="Cap of an explanation and score, reasoning included.")
    ] = 8192
    reasoning_effort: Annotated[
        Literal["", "none", "minimal", "low", "medium", "high", "xhigh"],
        Meta(description="For reasoning models; empty: the model's own default."),
    ] = ""
    repeats: Annotated[
        int, Meta(ge=1, le=16, description="random, grid: grades per candidate; the mean counts.")
    ] = 1
    list_size: Annotated[
        int, Meta(ge=2, le=26, description="Candidates per call with a listwise template.")
    ] = 6
    ca_file: Annotated[str, Meta(description="Own certificate authority (PEM) for https.")] = ""

    def __repr__(self) -> str:
        return f"Grading(api={self.api!r}, model={self.model!r})"


class Sampling(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[sampling] Which candidates are drawn, and when an image is good enough."""

    strategy: Annotated[
        Literal["adaptive", "random", "grid"],
        Meta(
            description="adaptive: what is learned says what pays; random: a few draws an image; "
            "grid: every combination."
        ),
    ] = "adaptive"
    effort: Annotated[
        Literal["economy", "balanced", "thorough", "maximal"],
        Meta(description="adaptive: how much is spent for quality, in one word."),
    ] = "balanced"
    consensus: Annotated[
        Literal["auto", "on", "off"],
        Meta(
            description="adaptive: whether what candidates agree on counts; auto: where a grade "
            "is dear beside a candidate."
        ),
    ] = "auto"
    min_gain: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(
            description="adaptive: points that the cost of one more candidate must bring; "
            "absent: as effort says."
        ),
    ] = None
    candidates_max: Annotated[
        Annotated[int, Meta(ge=1, le=1024)] | None,
        Meta(description="adaptive: most candidates per image; absent: as effort says."),
    ] = None
    grades_max: Annotated[
        Annotated[int, Meta(ge=1, le=1024)] | None,
        Meta(description="adaptive: most grades per image; absent: as effort says."),
    ] = None
    audit_share: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="adaptive: share of images that are drawn evenly and graded whole, for "
            "figures without bias.",
        ),
    ] = 0.02
    images_in_flight: Annotated[
        Annotated[int, Meta(ge=1, le=4096)] | None,
        Meta(description="Most images in work; absent: as many as fill the servers' slots."),
    ] = None
    candidates: Annotated[
        Annotated[int, Meta(ge=1, le=1024)] | None,
        Meta(description="random: candidates per image; absent: one per prompt."),
    ] = None
    seed: Annotated[int, Meta(ge=0, description="Start of all randomness.")] = 0
    temperature_range: Annotated[
        tuple[Annotated[float, Meta(ge=0, le=2)], ...],
        Meta(min_length=1, description="Temperatures to draw from, 0 to 2."),
    ] = (0.3, 0.7, 1.0)
    top_p_range: Annotated[
        tuple[Annotated[float, Meta(gt=0, le=1)], ...],
        Meta(min_length=1, description="top-p values to draw from, above 0 and up to 1."),
    ] = (0.7, 0.9)
    top_k_range: Annotated[
        tuple[int, ...],
        Meta(min_length=1, description="top-k values to draw from; -1 is off, else at least 1."),
    ] = (40, 60, 80)
    min_p: Annotated[float, Meta(ge=0, le=1, description="min-p of every request.")] = 0.0
    repetition_penalty: Annotated[
        float, Meta(gt=0, le=10, description="Repetition penalty of every request.")
    ] = 1.0
    score_threshold: Annotated[
        float, Meta(ge=0, le=100, description="From this score on a result is high quality.")
    ] = 80.0
    stop_score: Annotated[
        Annotated[float, Meta(ge=0, le=100)] | None,
        Meta(description="random, grid: stop an image at this score; absent: draw them all."),
    ] = None


class Processes(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[processes] How many worker processes; each has threads for its share of the requests."""

    generators: Annotated[int, Meta(ge=1, le=64, description="Generator processes.")] = 2
    graders: Annotated[int, Meta(ge=1, le=64, description="Grader processes.")] = 2


class Watch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[watch] How new images are noticed."""

    mode: Annotated[
        Literal["auto", "inotify", "polling"],
        Meta(description="auto: polling on network file systems, else inotify."),
    ] = "auto"
    settle_seconds: Annotated[
        float, Meta(ge=0.05, le=3600, description="A file is ready after this long without change.")
    ] = 2.0
    rescan_seconds: Annotated[
        float, Meta(ge=1, description="Seconds between two full scans of the folder.")
    ] = 300.0
    poll_seconds: Annotated[
        float, Meta(ge=0.1, description="Seconds between two looks when polling.")
    ] = 10.0
    patience_seconds: Annotated[
        float, Meta(ge=0, description="A truncated file this young is waited for, not failed.")
    ] = 60.0


class Images(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[images] Which pictures are acceptable."""

    max_megapixels: Annotated[float, Meta(gt=0, description="Larger pictures fail.")] = 50.0
    max_mebibytes: Annotated[float, Meta(gt=0, description="Larger files fail.")] = 64.0
    decode_mebibytes: Annotated[
        Annotated[int, Meta(ge=16)] | None,
        Meta(description="Memory to decode one picture; absent: 32 bytes per allowed pixel."),
    ] = None
    min_side: Annotated[int, Meta(ge=1, description="Smaller pictures fail (pixels).")] = 16
    max_aspect: Annotated[
        float, Meta(ge=1, description="More elongated pictures fail; vLLM refuses them.")
    ] = 200.0
    background: Annotated[
        Literal["auto", "white", "black"],
        Meta(description="Ground under transparency; auto: white, black under all-white ink."),
    ] = "auto"


class Errors(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[errors] How long an item is tried again."""

    max_attempts: Annotated[int, Meta(ge=1, le=1000, description="Tries that count per item.")] = 5
    max_age_hours: Annotated[
        float, Meta(gt=0, description="After this long an item with errors fails.")
    ] = 24.0
    backoff_seconds: Annotated[
        float, Meta(gt=0, description="First pause after an error; it doubles, jittered.")
    ] = 1.0
    backoff_max_seconds: Annotated[
        float, Meta(gt=0, description="Longest pause after an error.")
    ] = 60.0
    probe_seconds: Annotated[
        float, Meta(gt=0, description="First pause before an endpoint that is down is probed.")
    ] = 2.0
    quota_probe_seconds: Annotated[
        float, Meta(gt=0, description="Pause before an endpoint without credit is tried again.")
    ] = 300.0


class Throttle(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[throttle] When the host's load reduces or pauses the work."""

    enabled: Annotated[bool, Meta(description="Whether the host's load is looked at.")] = True
    cpu_reduce_percent: Annotated[
        float, Meta(gt=0, description="CPU above this reduces (above 100: never).")
    ] = 90.0
    cpu_share_percent: Annotated[
        float,
        Meta(
            ge=0,
            le=100,
            description="CPU reduces only while rsd itself uses more than this of the host.",
        ),
    ] = 25.0
    cpu_seconds: Annotated[
        float, Meta(ge=0, description="How long the CPU must stay above (and below, to recover).")
    ] = 30.0
    memory_reduce_percent: Annotated[
        float, Meta(ge=0, le=100, description="Memory available below this reduces.")
    ] = 15.0
    memory_pause_percent: Annotated[
        float, Meta(ge=0, le=100, description="Memory available below this pauses.")
    ] = 7.0
    disk_reduce_mebibytes: Annotated[
        float, Meta(ge=0, description="Free disk below this reduces.")
    ] = 2048.0
    disk_pause_mebibytes: Annotated[
        float, Meta(ge=0, description="Free disk below this pauses.")
    ] = 1024.0


class Prices(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[prices] Per million tokens, in your currency; absent: no cost is reported."""

    generator_input: Annotated[
        Annotated[float, Meta(ge=0)] | None, Meta(description="Generator, input.")
    ] = None
    generator_output: Annotated[
        Annotated[float, Meta(ge=0)] | None, Meta(description="Generator, output.")
    ] = None
    grader_input: Annotated[
        Annotated[float, Meta(ge=0)] | None, Meta(description="Grader, input.")
    ] = None
    grader_output: Annotated[
        Annotated[float, Meta(ge=0)] | None, Meta(description="Grader, output with reasoning.")
    ] = None


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings. Top level first, then one table per concern."""

    image_dir: Annotated[str, Meta(description="Folder that is watched; only read. Required.")] = ""
    output_dir: Annotated[
        str, Meta(description="Folder for results, outside of image_dir. Required.")
    ] = ""
    state_dir: Annotated[
        str,
        Meta(description="LMDB, spool and lock; empty: OUTPUT/state. Never on a network share."),
    ] = ""
    prompts: Annotated[str, Meta(description="Generation prompts: a JSON object, key to text.")] = (
        "prompts/generation_prompts.json"
    )
    grading_prompt: Annotated[
        str, Meta(description="Grading prompt: a JSON object with `template`.")
    ] = "prompts/grading_prompt.json"
    prompt_keys: Annotated[
        tuple[str, ...], Meta(description="Keys of the prompts to use; empty: all of them.")
    ] = ()
    checkpoint_interval: Annotated[
        int, Meta(ge=1, description="summary.json is rewritten after this many finished images.")
    ] = 10
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"], Meta(description="How much is logged.")
    ] = "INFO"
    drain_seconds: Annotated[
        float, Meta(ge=0, description="On stop, requests in flight may take this long to end.")
    ] = 60.0
    generation: Generation = Generation()
    grading: Grading = Grading()
    sampling: Sampling = Sampling()
    processes: Processes = Processes()
    watch: Watch = Watch()
    images: Images = Images()
    errors: Errors = Errors()
    throttle: Throttle = Throttle()
    prices: Prices = Prices()
