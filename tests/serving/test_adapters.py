"""Adapters on servers with vLLM's API: published whole, on every server or on none, proven, back after a
restart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from serving.adapter_files import CorruptAdapter
from serving.adapter_store import UnservableAdapter
from serving.engine import EngineError, EngineUnavailable, Sampling
from serving.proof import UnprovenAdapter
from serving.testing.fake_vllm import FakeVllm
from serving.vllm_engine import VllmEngine

# The conformance suite runs on both architectures.
pytestmark = pytest.mark.parametrize("base", ["llama"], indirect=True)
PROMPTS = ["add 1 and 2 ?", "7 ?"]
GREEDY = Sampling(max_new_tokens=8)

MakeAdapter = Callable[..., Path]
MakeFake = Callable[[], FakeVllm]
MakeEngine = Callable[..., VllmEngine]


def edit(adapter: Path, **values: object) -> Path:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return adapter


def loads(server: FakeVllm) -> int:
    return server.calls["/v1/load_lora_adapter"]


def test_a_version_stands_on_every_server_under_a_name_of_its_own(
    make_fake: MakeFake, make_engine: MakeEngine, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    one, two = make_fake(), make_fake()
    engine = make_engine(one.url, two.url, prefix="demo")
    engine.load(3, make_adapter(tmp_path / "a", seed=3))
    ((name, path),) = one.adapters().items()
    assert one.adapters() == two.adapters() and name.startswith("demo-v3-")
    assert sorted(file.name for file in Path(path).iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "manifest.json",
    ]  # fmt: skip
    assert engine.models() == {name: 3}
    standing = engine.stand(3)
    assert (standing.model, set(standing.ready), standing.wanting) == (name, {one.url, two.url}, {})
    assert loads(one) == loads(two) == 1


def test_other_weights_never_share_a_name_or_a_path(
    make_fake: MakeFake, make_engine: MakeEngine, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    server = make_fake()
    engine = make_engine(server.url)
    seen = set()
    for seed in (3, 4):  # the judge's slot: one number, one adapter after another
        engine.load(0, make_adapter(tmp_path / str(seed), seed=seed))
        seen |= set(server.adapters().items())
        engine.unload(0)
        assert server.adapters() == {}
    assert len({name for name, _ in seen}) == len({path for _, path in seen}) == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"r": 64}, "rank 64, the servers take up to 16"),
        ({"rank_pattern": {"q_proj": 32}}, "rank 32"),
        ({"r": "4"}, "must be whole numbers"),
    ],
)
def test_what_vllm_cannot_serve_is_refused_before_any_load(
    make_fake: MakeFake,
    make_engine: MakeEngine,
    make_adapter: MakeAdapter,
    tmp_path: Path,
    change: dict[str, object],
    reason: str,
) -> None:
    server = make_fake()
    engine = make_engine(server.url)
    with pytest.raises(EngineError, match=reason):
        engine.load(2, edit(make_adapter(tmp_path / "a", seed=3), **change))
    assert not loads(server) and engine.versions() == ()


def test_pickles_and_other_bases_adapters_are_refused_before_any_load(
    make_fake: MakeFake, make_engine: MakeEngine, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    server = make_fake()
    engine = make_engine(server.url)
    pickled = make_adapter(tmp_path / "pickled", seed=3)
    (pickled / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(CorruptAdapter, match="pickle"):
        engine.load(2, pickled)
    foreign = make_adapter(tmp_path / "foreign", seed=3)
    weights = load_file(foreign / "adapter_model.safetensors")
    wider = {name: w.repeat(1, 2) if "lora_A" in name else w for name, w in weights.items()}
    save_file(wider, foreign / "adapter_model.safetensors")
    with pytest.raises(EngineError, match="the base needs"):
        engine.load(2, foreign)
    assert not loads(server) and not list((tmp_path / "store").glob("*"))


def test_the_store_is_read_as_published_or_not_at_all(
    make_fake: MakeFake, make_engine: MakeEngine, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    server = make_fake()
    adapter = make_adapter(tmp_path / "a", seed=3)
    first = make_engine(server.url)
    first.load(2, adapter)
    first.unload(2)
    (stored,) = (tmp_path / "store").iterdir()
    weights = stored / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(CorruptAdapter, match="publishes the adapter again"):
        first.load(2, adapter)
    weights.unlink()
    elsewhere = tmp_path / "elsewhere.safetensors"
    elsewhere.write_bytes(whole)
    weights.symlink_to(elsewhere)
    with pytest.raises(UnservableAdapter, match="links"):
        first.load(2, adapter)
    outside = stored.rename(tmp_path / "outside")
    stored.symlink_to(outside)
    with pytest.raises(UnservableAdapter, match="out of the store"):
        first.load(2, adapter)
    assert loads(server) == 1


def test_servers_may_see_the_store_elsewhere(
    make_fake: MakeFake, make_engine: MakeEngine, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    server = make_fake()
    (tmp_path / "mounted").symlink_to(tmp_path / "store")
    engine = make_engine(server.url, store_there=f"{tmp_path}/mounted/")
    engine.load(2, make_adapter(tmp_path / "a", seed=3))
    (path,) = server.adapters().values()
    assert path.startswith(f"{tmp_path}/mounted/") and "//" not in path


def test_one_server_refuses_none_switches_the_old_version_serves_on(
    make_fake: MakeFake, make_engine: MakeEngine, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    willing, unwilling = make_fake(), make_fake()
    engine = make_engine(willing.url, unwilling.url)
    engine.load(2, make_adapter(tmp_path / "old", seed=2))
    before, old = engine.generate(PROMPTS, 2, GREEDY), willing.adapters()
    unwilling.refuses = "out of memory"
    with pytest.raises(EngineError, match=r"served nowhere now: .*out of memory"):
        engine.load(3, make_adapter(tmp_path / "new", seed=3))
    assert willing.adapters() == unwilling.adapters() == old
    assert engine.versions() == (2,) and engine.generate(PROMPTS, 2, GREEDY) == before


def test_an_adapter_that_is_not_applied_is_caught_by_the_proof(
    make_fake: MakeFake, make_engine: MakeEngine, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    honest, mute = make_fake(), make_fake()
    mute.mute = True  # 200, and the base answers under the adapter's name
    engine = make_engine(honest.url, mute.url)
    with pytest.raises(UnprovenAdapter, match=f"{mute.url} is not proven .*serves the base"):
        engine.load(2, make_adapter(tmp_path / "a", seed=3))
    assert loads(mute) == 1 and honest.adapters() == mute.adapters() == {}


def test_a_restarted_server_gets_its_version_back_before_it_answers(
    make_fake: MakeFake, make_engine: MakeEngine, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    server = make_fake()
    engine = make_engine(server.url)
    engine.load(2, make_adapter(tmp_path / "a", seed=3))
    before = engine.generate(PROMPTS * 8, 2, GREEDY)
    server.stop()
    assert engine.stand(2).ready == ()
    server.start()
    assert server.adapters() == {}
    assert engine.generate(PROMPTS * 8, 2, GREEDY) == before
    assert loads(server) == 2, "sixteen requests missed it, one load brought it back"
    server.stop()
    server.start()
    assert engine.stand(2).ready == (server.url,) and len(server.adapters()) == 1


def test_a_server_that_is_away_is_no_obstacle_and_gets_what_it_lacks(
    make_fake: MakeFake, make_engine: MakeEngine, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    here, away = make_fake(), make_fake()
    engine = make_engine(here.url, away.url)
    away.stop()
    engine.load(2, make_adapter(tmp_path / "a", seed=3))
    assert engine.stand(2).ready == (here.url,)
    assert engine.generate(PROMPTS, 2, GREEDY) and here.answered.total()
    away.start()
    assert set(engine.stand(2).ready) == {here.url, away.url}
    here.stop()
    away.stop()
    with pytest.raises(EngineUnavailable, match="no vLLM server answers now"):
        engine.load(3, make_adapter(tmp_path / "b", seed=4))


def test_what_another_process_loaded_is_not_taken_off_by_forgetting_it(
    make_fake: MakeFake, make_engine: MakeEngine, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    server = make_fake()
    deployer, evaluator = make_engine(server.url, prefix="s"), make_engine(server.url, prefix="s")
    adapter = make_adapter(tmp_path / "a", seed=3)
    deployer.load(2, adapter)
    evaluator.load(2, adapter)
    evaluator.unload(2)
    assert len(server.adapters()) == 1 and loads(server) == 1
    deployer.unload(2)
    assert server.adapters() == {}


def test_a_name_that_leads_elsewhere_is_not_used(
    make_fake: MakeFake, make_engine: MakeEngine, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    server = make_fake()
    adapter = make_adapter(tmp_path / "a", seed=3)
    make_engine(server.url, prefix="s").load(2, adapter)
    other = make_engine(server.url, prefix="s", store=tmp_path / "other")
    with pytest.raises(EngineError, match="a prefix each"):
        other.load(2, adapter)


def test_a_server_of_another_base_is_caught(
    make_fake: MakeFake, make_engine: MakeEngine, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    right, wrong = make_fake(), make_fake()
    # What this server calls its base answers with an adapter's weights: the shapes fit, the numbers do not.
    wrong.engine.unload(1)
    wrong.engine.load(1, make_adapter(tmp_path / "other-base", seed=9))
    engine = make_engine(right.url, wrong.url)
    with pytest.raises(UnprovenAdapter, match="its base is not the adapter's base"):
        engine.load(2, make_adapter(tmp_path / "a", seed=3))
    assert right.adapters() == wrong.adapters() == {}
