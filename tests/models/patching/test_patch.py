"""A model of the released structure before and after patch()."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forked_runs import run_forked
from patched_models import CHANNELS, WHERE, assert_same, maps, only, results, scalar, tiny
from safetensors.torch import load_file
from torch import nn

import d2ls_fast as d2
from d2ls_fast.benchmarks.official_structure import Decoder, OfficialStructure, official_head
from d2ls_fast.models.patching.fast import Fast

SWITCHES = [{name} for name in WHERE] + [{"interaction", "classification"}, set(WHERE)]


def identities(model: nn.Module) -> list[tuple[str, int]]:
    return [(name, id(each)) for name, each in (*model.named_parameters(), *model.named_buffers())]


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("names", SWITCHES, ids=lambda names: "+".join(sorted(names)))
def test_same_results_and_parameters(names: set[str], training: bool) -> None:
    model, inputs = tiny().train(training), maps()
    before, parameters, keys = results(model, inputs), identities(model), list(model.state_dict())
    assert only(model, names) is model
    report = d2.patch_report(model)
    assert report.replaced == {WHERE[name]: name for name in WHERE if name in names} | report.replaced
    assert set(report.replaced.values()) == names and set(report.left_alone) == {WHERE[n] for n in set(WHERE) - names}
    assert identities(model) == parameters and list(model.state_dict()) == keys
    assert_same(results(model, inputs), before)
    assert isinstance(model, OfficialStructure) and isinstance(model.decoder, Decoder)
    assert d2.unpatch(model) is model and d2.patch_report(model).replaced == {}
    assert not any(isinstance(each, Fast) for each in model.modules())
    after = results(model, inputs)
    assert all(torch.equal(after[key], before[key]) for key in before) and identities(model) == parameters


@pytest.mark.parametrize(
    # In float32 the released order of operations itself is off by 1.3e-5 here.
    ("patched", "dtype", "tolerance"),
    [(False, torch.float64, 1e-6), (True, torch.float64, 1e-6), (True, torch.float32, 1e-5)],
)
def test_the_golden_results(patched: bool, dtype: torch.dtype, tolerance: float) -> None:
    golden = load_file(Path(__file__).parents[2] / "golden/official_head_k7_l3.safetensors")
    model = official_head([128, 256, 512, 1024], 7).to(dtype).train()
    state = {key.removeprefix("state."): value for key, value in golden.items() if key.startswith("state.")}
    missing, unexpected = model.load_state_dict(state, strict=False)
    dead = (".self_attn.", ".mlp.", ".norm1.", ".norm3.")
    assert unexpected == [] and all(any(each in key for each in dead) for key in missing)
    if patched:
        assert set(d2.patch_report(d2.patch(model)).replaced.values()) == set(WHERE)
    golden = {key: value.to(dtype) for key, value in golden.items()}
    features = [golden[f"in.feature{i}"].requires_grad_() for i in range(4)]
    logits, auxiliary, contrastive = model(features)
    dynamic, static = golden["in.grad_logits_dynamic"], golden["in.grad_logits_static"]
    ((logits * dynamic).mean() + 0.4 * (auxiliary * static).mean() + 0.1 * contrastive).backward()
    found = {"out.logits_dynamic": logits.detach(), "out.logits_static": auxiliary.detach()}
    found |= {f"grad.feature{i}": each.grad for i, each in enumerate(features) if each.grad is not None}
    found |= {f"grad.{name}": p.grad for name, p in model.named_parameters() if f"grad.{name}" in golden}
    assert {key for key in golden if key.startswith("grad.")} <= set(found)
    assert_same(found, {key: golden[key] for key in found}, tolerance)
    assert {name for name, parameter in model.named_parameters() if parameter.grad is None} == set(missing)


def test_training_goes_on() -> None:
    model, twin = tiny().train(), tiny().train()
    optimizers = [torch.optim.AdamW(each.parameters(), lr=1e-3) for each in (model, twin)]
    for step in range(6):
        if step == 2:
            d2.patch(model)
        if step == 4:
            d2.unpatch(model)
        for each, optimizer in zip((model, twin), optimizers, strict=True):
            optimizer.zero_grad()
            scalar(each(maps(step))).backward()
            optimizer.step()
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))], ids=["deep", "pickle"]
)
def test_copies_are_patched_and_independent(copied: Callable[[nn.Module], nn.Module]) -> None:
    model = d2.patch(tiny())
    before = model(maps())
    twin = copied(model)
    assert d2.patch_report(twin) == d2.patch_report(model) and type(twin) is type(model)
    assert torch.equal(twin(maps())[0], before[0])
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    assert torch.equal(model(maps())[0], before[0])
    assert_same(results(twin, maps()), results(d2.unpatch(copy.deepcopy(twin)), maps()))


def test_state_dicts_go_either_way() -> None:
    torch.manual_seed(1)
    model, other = d2.patch(tiny()), official_head(CHANNELS, 3, embed_dim=32, num_heads=2, depth=2)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(model.eval()(maps()), other.eval()(maps()))
    other.load_state_dict(model.half().float().state_dict())
    torch.testing.assert_close(model(maps()), other(maps()))


@pytest.mark.parametrize("names", SWITCHES, ids=lambda names: "+".join(sorted(names)))
def test_autocast(names: set[str]) -> None:
    """As close to float64 as the original is, in its dtypes. With fewer entries one ReLU that flips is an error."""
    torch.manual_seed(0)
    model, inputs = official_head(CHANNELS, 20, embed_dim=64, num_heads=2, depth=2).train(), maps(batch=4)
    exact = results(copy.deepcopy(model).double(), [each.double() for each in inputs])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = results(model, inputs)
        fast = results(only(model, names), inputs)
    for key, value in exact.items():
        if "k_proj.bias" not in key:
            assert fast[key].dtype == plain[key].dtype, key
            errors = [float((each[key].double() - value).norm() / value.norm()) for each in (fast, plain)]
            assert errors[0] <= 2 * errors[1] + 2e-3, (key, errors)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)], ids=str)
@pytest.mark.parametrize(("images", "encodings"), [(1, 1), (2, 1), (2, 2)])
def test_the_interaction_alone(images: int, encodings: int, dtypes: tuple[torch.dtype, ...], autocast: bool) -> None:
    """Every mixture of dtypes that the original takes, one encoding for all images or one for each; both results."""
    module, (dtype, weights) = tiny().decoder.interactor, dtypes
    module = module.to(weights if autocast else dtype)
    pixels, pixel_pe, tokens = (
        torch.randn(images, 32, 3, 5),
        torch.randn(encodings, 32, 3, 5),
        torch.randn(images, 3, 32),
    )
    arguments = [each.to(dtype) for each in (pixels, pixel_pe, tokens)]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        wanted = module(*arguments)
        got = d2.patch(module)(*arguments)
    tolerance = 1e-5 if dtype is torch.float32 and not autocast else 2e-2
    for ours, theirs in zip(got, wanted, strict=True):
        assert (ours.shape, ours.dtype, ours.stride()) == (theirs.shape, theirs.dtype, theirs.stride())
        assert float((ours - theirs).norm() / theirs.norm()) < tolerance


def test_compiles() -> None:
    """The whole model and the decoder alone, each as one graph."""
    model, heard = tiny(depth=1).train(), []  # type: ignore[var-annotated]
    inputs = (torch.randn(2, 32, 6, 10), torch.randn(1, 32, 6, 10), torch.randn(2, 10, 2, 3))
    whole, decoded = model(maps()), model.decoder(*inputs)
    torch._dynamo.reset()
    compiled = d2.patch(torch.compile(model, fullgraph=True, backend="aot_eager"))
    assert set(d2.patch_report(model).replaced.values()) == set(WHERE) and not isinstance(compiled, Fast)
    torch.testing.assert_close(compiled(maps()), whole, rtol=1e-4, atol=1e-5)
    compiled = torch.compile(model.decoder, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), decoded, rtol=1e-4, atol=1e-5)
    scalar(compiled(*inputs)).backward()
    assert model.decoder.interactor.layers[0].norm2.weight.grad is not None
    model.decoder.interactor.norm_final_attn.register_forward_hook(lambda *_: heard.append(1))
    torch._dynamo.reset()
    torch.compile(model.decoder, backend="aot_eager")(*inputs)
    assert len(heard) == 2


def test_exports() -> None:
    decoder = d2.patch(tiny(depth=1).eval()).decoder
    inputs = (torch.randn(2, 32, 6, 10), torch.randn(1, 32, 6, 10), torch.randn(2, 10, 2, 3))
    exported = torch.export.export(decoder, inputs)
    assert set(exported.state_dict) == set(decoder.state_dict()) and not exported.constants
    torch.testing.assert_close(exported.module()(*inputs), decoder(*inputs))
    scaled = {name: 1.1 * parameter for name, parameter in decoder.named_parameters()}
    called = torch.func.functional_call(decoder, scaled, inputs)
    torch.testing.assert_close(called, torch.func.functional_call(d2.unpatch(decoder), scaled, inputs))


def one_of_two_processes(folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    found = []
    for change in (lambda each: each, d2.patch):
        model = nn.parallel.DistributedDataParallel(tiny().train(), find_unused_parameters=True)
        change(model)
        logits, auxiliary, _ = model(maps(rank))
        (scalar(logits) + scalar(auxiliary)).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert_same(found[1], found[0])
    torch.distributed.destroy_process_group()
    (folder / f"{rank}").touch()


def test_two_processes(tmp_path: Path) -> None:
    assert run_forked(one_of_two_processes, tmp_path, processes=2) == [0, 0]
    assert len(list(tmp_path.iterdir())) == 2


def test_patching_again_adds_what_was_off() -> None:
    model, wanted = tiny(), tiny()(maps())
    only(model, {"dictionary"})
    kinds = [type(each) for each in d2.patch(model).modules()]
    assert set(d2.patch_report(model).replaced.values()) == set(WHERE)
    assert [type(each) for each in only(model, {"neck"}).modules()] == kinds
    torch.testing.assert_close(model(maps()), wanted, rtol=1e-4, atol=1e-5)
    d2.unpatch(d2.unpatch(model))
    assert type(model) is OfficialStructure


def test_classes() -> None:
    own = Decoder.__init__
    try:
        assert d2.patch(d2.patch(OfficialStructure)) is OfficialStructure
        assert set(d2.patch_report(tiny()).replaced.values()) == set(WHERE)
        only(Decoder, {"interaction"})
        d2.unpatch(OfficialStructure)
        assert d2.patch_report(tiny()).replaced == {"decoder.interactor": "interaction"}
    finally:
        d2.unpatch(Decoder)
        d2.unpatch(OfficialStructure)
    assert Decoder.__init__ is own and not any("fast" in name for name in vars(Decoder))
    assert d2.patch_report(tiny()).replaced == {}

    class Fork(OfficialStructure):
        """Inherits how it is made."""

    d2.patch(Fork)
    made = Fork(tiny().backbone, [], CHANNELS, 3, 32, 2)
    assert isinstance(made, Fast) and isinstance(made, Fork) and not isinstance(tiny(), Fast)
    d2.unpatch(Fork)
    assert "__init__" not in vars(Fork)
    with pytest.warns(UserWarning, match="found nothing to replace in this Identity"):
        try:
            d2.patch(nn.Identity)()
        finally:
            d2.unpatch(nn.Identity)


def test_nothing_to_patch() -> None:
    with pytest.raises(d2.UserError, match="nothing in Linear is a part that can be replaced"):
        d2.patch(nn.Linear(2, 2))
    with pytest.raises(d2.UserError, match="all switches are off"):
        d2.patch(tiny(), **dict.fromkeys(list(inspect.signature(d2.patch).parameters)[1:], False))
