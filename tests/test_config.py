"""Overrides, JSON round trip, differences and help of nested frozen dataclasses."""

import dataclasses
import json
import math
import re
from typing import Any, Literal

import pytest

from worldmodels_jax import config as config_lib
from worldmodels_jax.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Optimiser:
    """The optimiser.

    Attributes:
      lr: the learning rate, which is held
        constant.
      clip: the largest gradient norm.
      warmup: steps of linear warm-up; none
        switches it off.
    """

    lr: float = 1e-4
    clip: float = math.inf
    warmup: int | None = None


@dataclasses.dataclass(frozen=True)
class Model:
    """A model.

    The text before the section has a colon: it is no entry.

    Attributes:
      prior: which prior.
      width: D, the model's width.
      heads (int): attention heads.
      channels: of the encoder, layer by layer.
      kernel: height and width.
      betas: loss weights.
      tags: labels.
      note: free text, or none.

    The text after it has one too: neither is it.
    """

    prior: Literal["maskgit", "mlp"] = "maskgit"
    width: int = 256
    heads: int = 4
    channels: tuple[int, ...] = (32, 64)
    kernel: tuple[int, int] = (4, 4)
    betas: tuple[float, ...] = ()
    tags: tuple[str, ...] = ("a",)
    note: str | None = None

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
      env: the environment.
      resume: whether to go on.
      mode: a number or a name.
    """

    env: str = "catch"
    resume: bool = False
    mode: int | float | str = 1
    model: Model = Model()
    optimiser: Optimiser = Optimiser()
    critic: Optimiser | None = None


@dataclasses.dataclass(frozen=True)
class Opaque:
    table: dict[str, int] = dataclasses.field(default_factory=dict)


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("resume", "true", True),
        ("resume", "YES", True),
        ("resume", "1", True),
        ("resume", "False", False),
        ("resume", "no", False),
        ("resume", "0", False),
        ("model.width", "1_000", 1000),
        ("model.width", "1e5", 100_000),
        ("model.width", "-8", -8),
        ("optimiser.lr", "3e-4", 3e-4),
        ("optimiser.lr", "1", 1.0),
        ("optimiser.lr", "-inf", -math.inf),
        ("env", "none", "none"),
        ("env", "", ""),
        ("env", "a=b,c", "a=b,c"),
        ("model.prior", "mlp", "mlp"),
        ("model.channels", "1,2,3", (1, 2, 3)),
        ("model.channels", "(1, 2,3)", (1, 2, 3)),
        ("model.channels", "(7,)", (7,)),
        ("model.channels", "7", (7,)),
        ("model.channels", "()", ()),
        ("model.kernel", "3,5", (3, 5)),
        ("model.betas", "1,0.5", (1.0, 0.5)),
        ("model.tags", "x,y z", ("x", "y z")),
        ("model.note", "none", None),
        ("model.note", "hello", "hello"),
        ("optimiser.warmup", "None", None),
        ("optimiser.warmup", "10", 10),
        ("mode", "3", 3),
        ("mode", "0.5", 0.5),
        ("mode", "auto", "auto"),
    ],
)
def test_override_parses_by_type(path: str, text: str, expected: Any) -> None:
    config = config_lib.apply_overrides(Run(), {path: text})
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    assert value == expected
    assert type(value) is type(expected)
    if isinstance(expected, tuple):
        assert [type(item) for item in value] == [type(item) for item in expected]


def test_override_leaves_everything_else_and_the_original() -> None:
    original = Run()
    changed = config_lib.apply_overrides(original, {"model.prior": "mlp", "env": "pong"})
    assert original == Run()
    assert changed == Run(env="pong", model=Model(prior="mlp"))


def test_override_changes_a_section_at_once() -> None:
    """Either change alone is refused by the section: 256 % 3 and 255 % 4 are not 0."""
    changed = config_lib.apply_overrides(Run(), {"model.heads": "3", "model.width": "255"})
    assert (changed.model.heads, changed.model.width) == (3, 255)


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("model.priro", "mlp", "no config field 'model.priro'; did you mean 'model.prior'?"),
        (
            "model.priro",
            "mlp",
            "Valid fields of 'model': prior, width, heads, channels, kernel, betas, tags, note",
        ),
        (
            "modle.width",
            "8",
            "no config field 'modle.width'; did you mean 'model.width' or 'mode'",
        ),
        ("prior", "mlp", "no config field 'prior'; did you mean 'model.prior'?"),
        (
            "zzz",
            "1",
            "no config field 'zzz'; Valid fields at the top level: "
            "env, resume, mode, model, optimiser, critic",
        ),
        ("", "1", "no config field ''"),
        ("model.width", "wide", "model.width='wide' is ill-typed; expected int"),
        ("model.width", "1.5", "model.width='1.5' is ill-typed; expected int"),
        ("model.width", "inf", "model.width='inf' is ill-typed; expected int"),
        ("model.width", "1e300", "model.width='1e300' is ill-typed; expected int"),
        ("optimiser.lr", "fast", "optimiser.lr='fast' is ill-typed; expected float"),
        ("optimiser.lr", "nan", "optimiser.lr='nan' is ill-typed; expected float"),
        ("resume", "maybe", "resume='maybe' is ill-typed; expected bool"),
        ("model.prior", "MLP", "model.prior='MLP' is ill-typed; expected maskgit|mlp"),
        ("model.channels", "1,x", "model.channels='1,x' is ill-typed; expected tuple[int, ...]"),
        ("model.channels", "1,,2", "model.channels='1,,2' is ill-typed"),
        ("model.kernel", "1,2,3", "model.kernel='1,2,3' is ill-typed; expected tuple[int, int]"),
        ("optimiser.warmup", "x", "optimiser.warmup='x' is ill-typed; expected int|none"),
        ("model", "storm", "'model' is a section and cannot be set to 'storm'"),
        ("critic", "none", "'critic' is a section and cannot be set to 'none'"),
        ("critic.lr", "1", "there is no 'critic.lr': 'critic' is a value (none), not a section"),
        ("model.width.x", "1", "there is no 'model.width.x': 'model.width' is a value (256)"),
        ("model.heads", "3", "model: width 256 is not a multiple of heads 3"),
    ],
)
def test_override_errors_name_path_value_and_remedy(path: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        config_lib.apply_overrides(Run(), {path: text})


def test_override_of_a_type_without_text() -> None:
    with pytest.raises(ConfigError, match=r"table='\{\}': a dict\[str, int\] cannot be read"):
        config_lib.apply_overrides(Opaque(), {"table": "{}"})


def test_config_error_is_a_value_error() -> None:
    assert issubclass(ConfigError, ValueError)


def test_to_dict_is_the_literal_and_json_carries_it_back() -> None:
    config = Run(model=Model(prior="mlp", betas=(0.5, 1.0)), critic=Optimiser(lr=1, warmup=5))
    plain = config_lib.to_dict(config)
    assert plain == {
        "env": "catch",
        "resume": False,
        "mode": 1,
        "model": {
            "prior": "mlp",
            "width": 256,
            "heads": 4,
            "channels": [32, 64],
            "kernel": [4, 4],
            "betas": [0.5, 1.0],
            "tags": ["a"],
            "note": None,
        },
        "optimiser": {"lr": 1e-4, "clip": "inf", "warmup": None},
        "critic": {"lr": 1, "clip": "inf", "warmup": 5},
    }
    restored = config_lib.from_dict(Run, json.loads(json.dumps(plain, allow_nan=False)))
    assert restored == config
    assert type(restored.critic.lr) is float  # the integer of the preset is the field's float again
    assert hash(restored) == hash(config)  # tuples, not lists: the config stays a static argument


def _with(path: str, value: Any) -> dict[str, Any]:
    plain = config_lib.to_dict(Run())
    *sections, name = path.split(".")
    place = plain
    for section in sections:
        place = place[section]
    place[name] = value
    return plain


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model.depth", 3, "model does not fit Model: unknown keys ['depth'], missing keys []"),
        ("model", 3, "model is 3; expected a mapping"),
        ("model.width", True, "model.width=True is ill-typed; expected int"),
        ("model.width", 4.0, "model.width=4.0 is ill-typed; expected int"),
        ("model.width", 255, "model: width 255 is not a multiple of heads 4"),
        ("model.prior", "rnn", "model.prior='rnn' is ill-typed; expected maskgit|mlp"),
        ("model.channels", 3, "model.channels=3 is ill-typed; expected tuple[int, ...]"),
        ("model.channels", ["x"], "model.channels='x' is ill-typed; expected int"),
        ("model.kernel", [1], "model.kernel=[1] is ill-typed; expected tuple[int, int]"),
        ("optimiser.lr", math.nan, "optimiser.lr=nan is ill-typed; expected float"),
        ("optimiser.lr", "1", "optimiser.lr='1' is ill-typed; expected float"),
        ("optimiser.warmup", "x", "optimiser.warmup='x' is ill-typed; expected int"),
        ("env", None, "env=None is ill-typed; expected str"),
        ("mode", [], "mode=[] is ill-typed; expected int|float|str"),
        ("critic", {"rate": 1.0}, "critic does not fit Optimiser: unknown keys ['rate'], missing"),
    ],
)
def test_from_dict_errors(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        config_lib.from_dict(Run, _with(path, value))


def test_what_an_older_version_wrote_takes_the_defaults() -> None:
    plain = config_lib.to_dict(Run(critic=Optimiser(lr=0.5)))
    del plain["resume"], plain["model"]["heads"], plain["critic"]["warmup"]
    assert config_lib.from_dict(Run, plain) == Run(critic=Optimiser(lr=0.5))
    needed = dataclasses.make_dataclass("Needed", [("a", int), ("b", int, 2)], frozen=True)
    assert config_lib.from_dict(needed, {"a": 1}) == needed(1, 2)
    with pytest.raises(ConfigError, match=r"Needed: unknown keys \[\], missing keys \['a'\]"):
        config_lib.from_dict(needed, {"b": 1})


def test_from_dict_names_the_class_at_the_top() -> None:
    plain = config_lib.to_dict(Run()) | {"seeed": 0}
    with pytest.raises(ConfigError, match=r"Run does not fit Run: unknown keys \['seeed'\]"):
        config_lib.from_dict(Run, plain)


@pytest.mark.parametrize(("value", "shown"), [(math.nan, "nan"), ({}, r"\{\}")])
def test_to_dict_refuses_what_json_loses(value: Any, shown: str) -> None:
    config = Run(optimiser=Optimiser(lr=value))
    with pytest.raises(ConfigError, match=f"optimiser.lr holds {shown}, which does not survive"):
        config_lib.to_dict(config)


def test_from_dict_chooses_among_sections() -> None:
    @dataclasses.dataclass(frozen=True)
    class Either:
        part: Model | Optimiser
        twin: Optimiser | Twin = Optimiser()

    config = Either(part=Optimiser(lr=0.5), twin=Optimiser())
    plain = config_lib.to_dict(config)
    with pytest.raises(ConfigError, match=r"twin fits more than one section of Optimiser\|Twin"):
        config_lib.from_dict(Either, plain)
    only = dataclasses.make_dataclass("Only", [("part", Model | Optimiser)], frozen=True)
    assert config_lib.from_dict(only, {"part": plain["part"]}).part == Optimiser(lr=0.5)
    # Less than either: that which it is nearer to.
    assert config_lib.from_dict(only, {"part": {}}).part == Optimiser()


@dataclasses.dataclass(frozen=True)
class Twin:
    lr: float = 0.0
    clip: float = 0.0
    warmup: int | None = None


def test_diff_is_the_changed_paths() -> None:
    a = Run()
    b = Run(env="pong", model=Model(channels=(1,)), critic=Optimiser())
    assert config_lib.diff(a, a) == {}
    assert config_lib.diff(a, b) == {
        "env": ("catch", "pong"),
        "model.channels": ((32, 64), (1,)),
        "critic": (None, Optimiser()),
    }
    assert config_lib.diff(Optimiser(), Model()) == {"": (Optimiser(), Model())}


def test_describe_is_the_literal_table() -> None:
    table = """
path              type               value    doc
env               str                catch    the environment.
resume            bool               false    whether to go on.
mode              int|float|str      1        a number or a name.
model.prior       maskgit|mlp        maskgit  which prior.
model.width       int                256      D, the model's width.
model.heads       int                4        attention heads.
model.channels    tuple[int, ...]    (32,64)  of the encoder, layer by layer.
model.kernel      tuple[int, int]    (4,4)    height and width.
model.betas       tuple[float, ...]  ()       loss weights.
model.tags        tuple[str, ...]    (a)      labels.
model.note        str|none           hi       free text, or none.
optimiser.lr      float              0.0001   the learning rate, which is held constant.
optimiser.clip    float              inf      the largest gradient norm.
optimiser.warmup  int|none           none     steps of linear warm-up; none switches it off.
critic            Optimiser|none     none
"""
    assert config_lib.describe(Run(model=Model(note="hi"))) == table.strip()


def test_described_values_are_what_overrides_read() -> None:
    config = Run(resume=True, model=Model(betas=(0.5,), tags=()), optimiser=Optimiser(warmup=3))
    rows = [re.split(r"  +", line) for line in config_lib.describe(config).splitlines()[1:]]
    shown = {row[0]: row[2] for row in rows if row[0] != "critic"}
    assert config_lib.apply_overrides(Run(), shown) == config


def test_describe_knows_inherited_docs() -> None:
    @dataclasses.dataclass(frozen=True)
    class Derived(Optimiser):
        """Another.

        Attributes:
          lr: another rate.
        """

    lines = config_lib.describe(Derived()).splitlines()
    assert lines[1].endswith("another rate.")
    assert lines[2].endswith("the largest gradient norm.")


def test_split_flags_takes_overrides_and_nothing_else() -> None:
    argv = [
        *["train.py", "--config=catch", "--config.a.b=1", "--seed", "3", "-config.c", "-4"],
        *["--config.a.b", "2", "--config.e=x=y", "--config.f=", "--configs.g=1", "-config.h=h"],
    ]
    remaining, overrides = config_lib.split_flags(argv)
    assert remaining == ["train.py", "--config=catch", "--seed", "3", "--configs.g=1"]
    assert overrides == {"a.b": "2", "c": "-4", "e": "x=y", "f": "", "h": "h"}


def test_split_flags_of_another_name_and_after_the_dashes() -> None:
    argv = ["--model.a=1", "--config.b=2", "--", "--model.c=3"]
    remaining, overrides = config_lib.split_flags(argv, name="model")
    assert remaining == ["--config.b=2", "--", "--model.c=3"]
    assert overrides == {"a": "1"}


@pytest.mark.parametrize(
    "argv", [["--config.flag"], ["--config.flag", "--seed=1"], ["--config.flag", "-config.b=1"]]
)
def test_split_flags_without_value(argv: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"--config\.flag has no value; write --config\.flag="):
        config_lib.split_flags(argv)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A section whose fields its subclasses have."""


@dataclasses.dataclass(frozen=True)
class Round(Kind):
    """Attributes:
    radius: of it.
    """

    radius: float = 1.0


@dataclasses.dataclass(frozen=True)
class Square(Kind):
    """Attributes:
    side: of it.
    """

    side: float = 2.0


@dataclasses.dataclass(frozen=True)
class Drawing:
    """Attributes:
    kind: what is drawn.
    """

    kind: Kind


@pytest.mark.parametrize("kind", [Round(3.0), Square(4.0)])
def test_a_section_of_a_bare_type_is_found_among_its_subclasses(kind: Kind) -> None:
    drawing = Drawing(kind)
    assert config_lib.from_dict(Drawing, config_lib.to_dict(drawing)) == drawing


def test_a_section_that_no_subclass_fits_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"kind=\{'edge': 1.0\} is ill-typed; expected .*Round"):
        config_lib.from_dict(Drawing, {"kind": {"edge": 1.0}})


def test_the_fields_of_a_subclass_can_be_overridden() -> None:
    drawing = config_lib.apply_overrides(Drawing(Square()), {"kind.side": "5"})
    assert drawing == Drawing(Square(5.0))
    with pytest.raises(ConfigError, match="radius"):
        config_lib.apply_overrides(Drawing(Square()), {"kind.radius": "5"})
