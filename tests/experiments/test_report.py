"""Reports of fabricated evaluations, with results computed by hand."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from experiments import collect, report

ROOT = Path(__file__).parents[2]


def write_run(
    directory: Path,
    environment: str,
    means: dict[int, float],
    *,
    prior: str = "maskgit",
    preset: str = "atari100k",
    random: float = 0.0,
    step: int = 100,
    width: int = 8,
    prefix: str = "",
    **protocol: Any,
) -> Path:
    """Writes a run's evaluation and config."""
    directory.mkdir(parents=True, exist_ok=True)
    evaluation = {
        "mean": sum(means.values()) / len(means),
        "random_mean": random,
        "per_seed": {str(seed): mean for seed, mean in means.items()},
        "step": step,
        "preset": preset,
        "protocol": {
            "environment": environment,
            "actions": "sampled",
            "max_episode_steps": 100,
            "evaluation_seed": 5,
            **protocol,
        },
    }
    config = {
        "preset": preset,
        "env": {"game": environment},
        "model": {"prior": prior, "width": width},
        "agent": {"width": 4},
        "training": {"steps": step, "chunk": 10},
    }
    (directory / f"{prefix}evaluation.json").write_text(json.dumps(evaluation))
    (directory / f"{prefix}config.json").write_text(json.dumps({"config": config, "seed": 0}))
    return directory


def make(paths: Sequence[Path], out: Path, **options: Any) -> dict[str, Any]:
    """A report with few resamples, as JSON."""
    report.make_report(paths, out, **{"repetitions": 50, **options})
    return json.loads((out / "report.json").read_text())


@pytest.fixture
def atari(tmp_path: Path) -> Path:
    """Two systems, two games (Boxing 0 to 12, Pong -21 to 15), two seeds."""
    runs = tmp_path / "runs"
    write_run(runs / "a", "atari/Pong", {0: -21, 1: 15}, random=-20)
    write_run(runs / "b", "atari/Boxing", {0: 6, 1: 12}, max_episode_steps=50)
    write_run(runs / "c", "atari/Pong", {0: 6, 1: -3}, prior="mlp", random=-20)
    storm = runs / "d"
    write_run(storm, "atari/Boxing", {0: 3}, prior="mlp", prefix="seed0_", max_episode_steps=50)
    write_run(storm, "atari/Boxing", {1: 3}, prior="mlp", prefix="seed1_", max_episode_steps=50)
    return runs


def test_atari_by_hand(atari: Path, tmp_path: Path) -> None:
    """Normalised, GIT-STORM has 1/2 and 1 on Boxing, 0 and 1 on Pong; STORM 1/4 twice, 3/4, 1/2."""
    section = make([atari], tmp_path / "out", repetitions=2000)["benchmarks"]["atari100k"]
    git, storm = "GIT-STORM (atari100k)", "STORM (atari100k)"
    assert section["aggregated_over"] == ["atari/Boxing", "atari/Pong"]
    assert list(section["aggregates"])[:2] == [git, storm]
    assert {"STORM (re-run)", "STORM (released)"} < set(section["aggregates"])

    values = {s: {k: e["value"] for k, e in section["aggregates"][s].items()} for s in (git, storm)}
    assert values[git] == {"mean": 0.625, "median": 0.625, "iqm": 0.75, "optimality_gap": 0.375}
    # Pooled 1/4 1/4 1/2 3/4: the middle two.
    assert values[storm] == pytest.approx(
        {"mean": 0.4375, "median": 0.4375, "iqm": 0.375, "optimality_gap": 0.5625}
    )
    # The least mean, (1/2 + 0) / 2, has probability 1/16 under the bootstrap: more than 2.5 %.
    assert (
        section["aggregates"][git]["mean"]["low"],
        section["aggregates"][git]["mean"]["high"],
    ) == (
        0.25,
        1.0,
    )
    pairs = {(p["x"], p["y"]): p["value"] for p in section["probability_of_improvement"]}
    assert pairs[git, storm] == 0.75  # Boxing won always, Pong every second time
    assert pairs[git, "SimPLe"] == 0.5  # 8 on Boxing: 12 wins; 13 on Pong: 15 wins
    assert pairs[storm, "STORM (re-run)"] == 0.0
    assert (storm, git) not in pairs
    thresholds = section["profiles"]["thresholds"]
    profile = section["profiles"]["systems"][git]["value"]
    assert profile[thresholds.index(0.0)] == 0.75
    assert profile[thresholds.index(0.5)] == 0.5
    assert profile[thresholds.index(1.0)] == 0.0

    boxing = section["environments"]["atari/Boxing"]
    assert (boxing["task"], boxing["zero"], boxing["one"]) == ("Boxing", 0, 12)
    assert boxing["published"]["STORM (re-run)"] == 80
    assert boxing["published"]["STORM (released)"] == pytest.approx(79.68)
    own = boxing["systems"][git]
    assert own == {
        "per_seed": {"0": 6.0, "1": 12.0},
        "mean": 9.0,
        "interval_95": [6.0, 12.0],
        "iqm": 9.0,
        "normalised_mean": 0.75,
    }
    assert section["environments"]["atari/Pong"]["random"] == -20
    assert section["printed"] == {}  # of all 26 games, not of two


def test_files_of_a_report(atari: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    text = report.make_report([atari], out, repetitions=10)
    assert text == (out / "report.md").read_text()
    figures = [f"atari100k_{name}.png" for name in ("aggregates", "profiles", "improvement")]
    assert {path.name for path in out.iterdir()} == {"report.md", "report.json", *figures}
    for name in figures:
        assert f"![{name}]({name})" in text
        with Image.open(out / name) as image:
            assert image.width > 400
    row = "| atari/Boxing | GIT-STORM (atari100k) | 0, 1 | 9 | 6 to 12 | 9 | 0 | 12 | 0.750 |"
    assert row in text
    assert "| Pong | -21 | 15 | 13 | 19 | 15 | 19 | 8 | 11.28 | 6 | -3 | 1.5 |" in text
    assert "STORM stands here twice" in text
    assert "max_episode_steps=50" in text
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    report.make_report([atari], out, repetitions=10)
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}


def test_without_runs_the_published_tables_speak(tmp_path: Path) -> None:
    content = make([], tmp_path)
    atari, dmc = content["benchmarks"]["atari100k"], content["benchmarks"]["dmc"]
    assert len(atari["aggregated_over"]) == 26
    assert len(dmc["aggregated_over"]) == 20
    found = atari["aggregates"]["GIT-STORM (paper)"]["mean"]["value"]
    assert found == pytest.approx(1.124, abs=6e-4)
    assert atari["printed"]["mean"]["GIT-STORM (paper)"] == 1.126
    released = atari["aggregates"]["STORM (released)"]["mean"]
    assert released["value"] == pytest.approx(1.222, abs=6e-4)
    assert released["low"] < released["value"] < released["high"]
    text = (tmp_path / "report.md").read_text()
    assert "| GIT-STORM (paper) | 1.124 (printed 1.126) | 0.423 (printed 0.426) |" in text
    assert "| STORM (re-run) | 0.229 (printed 0.214) |" in text  # DMC, whose print does not follow
    assert "| Boxing | GIT-STORM (paper) | 1580 | 54.95 |" in text
    assert "GIT-STORM (paper) > STORM (released)" in text
    assert len(list(tmp_path.glob("*.png"))) == 6
    assert "## Evaluations" not in text


def test_control_tasks_are_over_a_thousand(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", "dmc/walker_walk", {3: 250, 4: 750}, preset="dmc")
    section = make([run], tmp_path / "out")["benchmarks"]["dmc"]
    assert section["aggregates"]["GIT-STORM (dmc)"]["mean"]["value"] == 0.5
    assert section["aggregates"]["GIT-STORM (paper)"]["mean"]["value"] == pytest.approx(0.8547)
    assert section["environments"]["dmc/walker_walk"]["task"] == "Walker Walk"


def other(tmp_path: Path) -> list[Path]:
    """Catch, random -0.5: GIT-STORM 1/4, STORM -1/8. The same env key as older files have."""
    git = write_run(tmp_path / "g", "Catch", {0: 0.0, 1: 0.5}, random=-0.5, preset="p")
    storm = write_run(
        tmp_path / "s", "Catch", {0: -0.5, 1: 0.25}, random=-0.5, preset="p", prior="mlp"
    )
    path = storm / "evaluation.json"
    evaluation = json.loads(path.read_text())
    evaluation["protocol"]["env"] = evaluation["protocol"].pop("environment")
    path.write_text(json.dumps(evaluation))
    return [git, storm]


def test_other_environments_to_the_best_here(tmp_path: Path) -> None:
    section = make(other(tmp_path), tmp_path / "out")["benchmarks"]["other"]
    row = section["environments"]["Catch"]
    assert (row["zero"], row["one"], row["one_is"]) == (-0.5, 0.25, "best system here")
    assert row["systems"]["GIT-STORM (p)"]["normalised_mean"] == 1.0
    assert row["systems"]["STORM (p)"]["normalised_mean"] == 0.5
    assert section["aggregates"]["STORM (p)"]["mean"]["value"] == 0.5
    assert any("compare systems within this report only" in note for note in section["notes"])
    (pair,) = section["probability_of_improvement"]
    assert (pair["x"], pair["y"], pair["value"]) == ("GIT-STORM (p)", "STORM (p)", 0.75)
    assert list(section["aggregates"]) == ["GIT-STORM (p)", "STORM (p)"]


def test_other_environments_to_a_reference(tmp_path: Path) -> None:
    section = make(other(tmp_path), tmp_path / "out", references={"Catch": 1.0})
    section = section["benchmarks"]["other"]
    row = section["environments"]["Catch"]
    assert (row["one"], row["one_is"]) == (1.0, "reference")
    assert row["systems"]["GIT-STORM (p)"]["normalised_mean"] == 0.5
    assert section["aggregates"]["STORM (p)"]["mean"]["value"] == 0.25
    assert not any("within this report only" in note for note in section["notes"])


def test_an_environment_nobody_learned_has_no_scale(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", "Catch", {0: -0.75}, random=-0.5, preset="p")
    content = make([run], tmp_path / "out")
    section = content["benchmarks"]["other"]
    assert "aggregates" not in section
    assert section["environments"]["Catch"]["systems"]["GIT-STORM (p)"]["mean"] == -0.75
    assert section["environments"]["Catch"]["systems"]["GIT-STORM (p)"]["normalised_mean"] is None
    assert any("no system is above the random policy" in note for note in section["notes"])
    assert not list((tmp_path / "out").glob("*.png"))
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| Catch | GIT-STORM (p) | 0 | -0.75 |  | -0.75 | -0.5 | none | none |" in text


def test_aggregates_are_over_what_all_systems_share(atari: Path, tmp_path: Path) -> None:
    """Three seeds of Pong for two of Boxing: two are used; Alien, of one system, is left out."""
    write_run(atari / "e", "atari/Alien", {0: 7128}, random=-20)
    write_run(atari / "f", "atari/Pong", {2: 1500}, random=-20)
    section = make([atari], tmp_path / "out")["benchmarks"]["atari100k"]
    assert section["aggregated_over"] == ["atari/Boxing", "atari/Pong"]
    assert section["aggregates"]["GIT-STORM (atari100k)"]["mean"]["value"] == 0.625
    pong = section["environments"]["atari/Pong"]["systems"]["GIT-STORM (atari100k)"]
    assert pong["mean"] == 498  # the table hides no seed
    assert list(section["environments"]) == ["atari/Alien", "atari/Boxing", "atari/Pong"]
    assert any("not every system was evaluated on atari/Alien" in n for n in section["notes"])
    assert any("has 2 to 3 seeds per environment" in n for n in section["notes"])


def test_systems_without_a_common_environment(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", "Catch", {0: 1.0}, preset="catch"),
        write_run(tmp_path / "b", "Breakout-MinAtar", {0: 7.0}, preset="breakout"),
    ]
    section = make(runs, tmp_path / "out")["benchmarks"]["other"]
    assert section["aggregated_over"] == []
    assert any("one name with --labels" in note for note in section["notes"])
    pooled = make(runs, tmp_path / "out", labels=["GIT-STORM", "GIT-STORM"])
    assert pooled["benchmarks"]["other"]["aggregated_over"] == ["Breakout-MinAtar", "Catch"]


def test_labels_pool_and_say_what_they_pool(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", "Catch", {0: 0.0}, preset="p", random=-1)
    b = write_run(tmp_path / "b", "Catch", {1: 1.0}, preset="p", random=-1, width=16)
    with pytest.raises(ValueError, match=r"GIT-STORM \(p\) were trained differently \(model.width"):
        collect.collect([a, b])
    content = make([a, b], tmp_path / "out", labels=["x", "x"])
    assert "model.width is 8 in " in content["notes"][0]
    row = content["benchmarks"]["other"]["environments"]["Catch"]["systems"]["x"]
    assert row["per_seed"] == {"0": 0.0, "1": 1.0}
    (a / "config.json").unlink()
    assert make([a], tmp_path / "out", labels=["y"])["evaluations"][0]["system"] == "y"


def test_fields_without_effect_on_scores_may_differ(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", "Catch", {0: 0.0}, preset="p")
    b = write_run(tmp_path / "b", "Catch", {1: 1.0}, preset="p")
    path = b / "config.json"
    path.write_text(path.read_text().replace('"chunk": 10', '"chunk": 20'))
    assert {e.system for e in collect.collect([a, b])} == {"GIT-STORM (p)"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"actions": "mode"}, r"Catch differ: actions is 'sampled' in .* and 'mode' in "),
        ({"max_noops": 3}, "max_noops is absent in .* and 3 in "),
        ({"max_episode_steps": 7}, "max_episode_steps is 100 in .* and 7 in "),
        ({"step": 200}, "training steps is 100 in .* and 200 in "),
    ],
)
def test_protocols_are_not_mixed(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    runs = [
        write_run(tmp_path / "a", "Catch", {0: 1.0}, preset="p"),
        write_run(tmp_path / "b", "Catch", {0: 2.0}, preset="q", **changed),
    ]
    with pytest.raises(ValueError, match=message) as raised:
        make(runs, tmp_path / "out")
    assert "--mix_protocols" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
    content = make(runs, tmp_path / "out", mix_protocols=True)
    assert "Mixed protocols (other): evaluations of Catch differ" in content["notes"][0]


def test_protocols_of_two_environments(tmp_path: Path) -> None:
    """Time limits, training lengths and what one suite alone knows may differ, and the rest not."""
    catch = write_run(tmp_path / "a", "Catch", {0: 1.0}, preset="p")
    fine = write_run(
        *(tmp_path / "b", "Pong-misc", {0: 2.0}),
        **{"preset": "q", "max_episode_steps": 7, "step": 900, "pixels": True},
        evaluation_seed=6,
    )
    make([catch, fine], tmp_path / "out")
    greedy = write_run(tmp_path / "c", "Pong-misc", {0: 2.0}, preset="q", actions="mode")
    with pytest.raises(ValueError, match="of one benchmark differ: actions is"):
        make([catch, greedy], tmp_path / "out")
    # Another benchmark is another table.
    dmc = write_run(tmp_path / "d", "dmc/cup_catch", {0: 2.0}, preset="q", actions="mode")
    assert set(make([catch, dmc], tmp_path / "out")["benchmarks"]) == {"other", "dmc"}


def test_a_run_given_twice(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", "Catch", {0: 1.0}, preset="p")
    with pytest.raises(ValueError, match=r"seed 0 of GIT-STORM \(p\) on Catch is in .* and in "):
        collect.collect([run, run / "evaluation.json"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged, it is no JSON"),
        ("[1]", "holds no JSON object"),
        ("{}", r"is damaged or no evaluation of this library \(KeyError: 'protocol'\)"),
        ('{"protocol": 3}', "TypeError"),
    ],
)
def test_damaged_evaluations(tmp_path: Path, content: str, message: str) -> None:
    run = write_run(tmp_path / "a", "Catch", {0: 1.0})
    (run / "evaluation.json").write_text(content)
    with pytest.raises(ValueError, match=message) as raised:
        collect.collect([run])
    assert str(run / "evaluation.json") in str(raised.value)


def test_scores_that_are_none(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", "Catch", {0: 1.0, 1: float("nan")})
    with pytest.raises(ValueError, match="a report needs finite ones"):
        collect.collect([run])
    run = write_run(tmp_path / "b", "Catch", {0: 1.0}, random=float("inf"))
    with pytest.raises(ValueError, match="inf of the random policy"):
        collect.collect([run])


def test_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere does not exist: give run directories"):
        collect.collect([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match=r"holds no evaluation.json: .*evaluate --run="):
        collect.collect([tmp_path])
    run = write_run(tmp_path / "a", "Catch", {0: 1.0})
    with pytest.raises(ValueError, match="--labels=x,y names 2 of 1 paths"):
        collect.collect([run], ["x", "y"])
    (run / "config.json").write_text('{"config": 1}')
    with pytest.raises(ValueError, match=r"config.json is damaged or no config"):
        collect.collect([run])
    (run / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config.json, which names the system, is missing"):
        collect.collect([run])


def test_references_and_names_that_do_not_fit(tmp_path: Path) -> None:
    catch = write_run(tmp_path / "a", "Catch", {0: 1.0}, random=0.5)
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"--references=Catch=0\.5 is not above the random policy"):
        make([catch], out, references={"Catch": 0.5})
    with pytest.raises(ValueError, match=r"--references=Cacth=1 is for no environment .* Catch"):
        make([catch], out, references={"Cacth": 1.0})
    pong = write_run(tmp_path / "b", "atari/Pong", {0: 1.0})
    with pytest.raises(ValueError, match="'TWM' is the name of a published column of Atari 100k"):
        make([pong], out, labels=["TWM"])
    assert report.parse_references(["a/b-v1=1.5", "c=d=2"]) == {"a/b-v1": 1.5, "c=d": 2.0}
    for pair in ("Catch", "Catch=", "=1", "Catch=much"):
        with pytest.raises(ValueError, match=f"--references={pair} is no environment and score"):
            report.parse_references([pair])


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "experiments.report", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_from_the_command_line(tmp_path: Path) -> None:
    git, storm = other(tmp_path)
    out = tmp_path / "out"
    done = run(
        *(str(git), "--labels=new,old", "--references=Catch=1", f"--out={out}"),
        *("--repetitions=20", str(storm)),
    )
    assert done.returncode == 0, done.stderr
    assert (out / "report.md").read_text() in done.stdout
    assert f"Wrote {out / 'report.md'}" in done.stdout
    content = json.loads((out / "report.json").read_text())
    assert content["repetitions"] == 20
    assert list(content["benchmarks"]["other"]["aggregates"]) == ["new", "old"]


def test_mistakes_on_the_command_line(tmp_path: Path) -> None:
    done = run(str(tmp_path / "nowhere"), f"--out={tmp_path / 'out'}")
    assert done.returncode != 0
    assert done.stderr == (
        f"error: {tmp_path / 'nowhere'} does not exist: give run directories or evaluation.json "
        "files.\n"
    )
    text = run("--help").stdout
    for flag in ("out", "labels", "references", "[no]mix_protocols", "repetitions"):
        assert f"  --{flag}: " in text
    assert "python -m experiments.report runs/pong runs/boxing" in text
