"""The checklist flags each broken defense of the gallery, for the right reason, and leaves sound models alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustlab import zoo
from robustlab.data import load
from robustlab.defenses.broken import Broken, gallery
from robustlab.evaluation import Claim, checklist

STANDS = "the claimed robust accuracy stands"
# What must be found wrong with each, apart from its number.
REASONS = {
    "quantization": "gradients are there",
    "random_resize": "two predictions of one input agree",
    "logit_squashing": "gradients are there",
    "gradient_shattering": "a small step along the gradient does what it promises",
    "detector": STANDS,
    "train_mode": "the model is in evaluation mode",
    "missing_clamp": "the attack stays in the box",
    "normalized_eps": "the attack uses the budget that is claimed",
}


def digits(n: int) -> tuple[Tensor, Tensor]:
    data = load("mnist5k")
    return data.x_test[:n], data.y_test[:n]


@pytest.fixture(scope="module")
def broken() -> dict[str, Broken]:
    return gallery(*digits(40))


@pytest.mark.slow
@pytest.mark.parametrize("name", REASONS)
def test_each_broken_defense_is_flagged_for_its_reason(broken: dict[str, Broken], name: str) -> None:
    entry = broken[name]
    report = checklist(entry.model, *digits(40), claim=entry.claim, surrogate=entry.undefended, steps=12, queries=100)
    wrong = {check.name for check in report.failed}
    assert {REASONS[name], STANDS} <= wrong, str(report)
    here, claimed = report[STANDS].evidence["here"], report[STANDS].evidence["claimed"]
    assert here <= 0.15 < claimed, str(report)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["quantization", *(pytest.param(n, marks=pytest.mark.full) for n in ("logit_squashing", "gradient_shattering"))],
)
def test_masked_gradients_show_in_the_orderings(broken: dict[str, Broken], name: str) -> None:
    """Even without a look at the gradients, and without a surrogate."""
    entry = broken[name]
    report = checklist(entry.model, *digits(40), claim=entry.claim, steps=12, queries=100)
    wrong = {check.name for check in report.failed}
    assert {"white box beats search", "accuracy reaches zero in a large ball"} <= wrong
    assert report["white box beats transfer"].passed is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "surrogate"),
    [
        ("mnist_cnn_adv", "mnist_cnn"),
        pytest.param("fashion_cnn_adv", "fashion_cnn", marks=pytest.mark.full),
        pytest.param("mnist_mlp", "mnist_cnn", marks=pytest.mark.full),
        ("fashion_mlp", "fashion_cnn"),
    ],
)
def test_adversarially_trained_models_are_not_flagged(name: str, surrogate: str) -> None:
    data = load("mnist5k" if name.startswith("mnist") else "fashion")
    recorded = zoo.info(name)
    claim = Claim(
        eps=recorded["attack"]["eps"],
        clean_accuracy=recorded["accuracy"],
        robust_accuracy=recorded["robust_accuracy"],
    )
    report = checklist(
        zoo.load(name), data.x_test[:80], data.y_test[:80], claim=claim, surrogate=zoo.load(surrogate), steps=20
    )
    assert report.passed, str(report)
    assert all(check.passed for check in report.checks)


@pytest.mark.parametrize("norm", ["l1", pytest.param("l2", marks=pytest.mark.full)])
def test_sound_models_in_other_norms(norm: str) -> None:
    claim = Claim(norm=norm, eps={"l1": 5.0, "l2": 0.7}[norm], clean_accuracy=0.956)
    report = checklist(zoo.load("mnist_mlp"), *digits(40), claim=claim, steps=20, queries=50)
    assert report.passed, str(report)
    assert report[STANDS].passed is None
    assert (report["white box beats search"].passed is None) == (norm == "l1")


def test_inputs_that_are_no_images() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).double().eval()
    net[0].weight.data *= 3
    x = torch.rand(30, 6, dtype=torch.float64)
    report = checklist(net, x, net(x).argmax(1), claim=Claim(eps=0.05, clean_accuracy=1.0), steps=20)
    missing = [check.name for check in report.checks if check.passed is None]
    assert missing == ["white box beats search", "white box beats transfer", STANDS]
    wrong = {check.name for check in report.failed}
    assert wrong <= {"accuracy reaches zero in a large ball"}, str(report)  # a class may have no point in the box


class Spoiled(nn.Module):
    """A model whose answers to x are rescaled and have one more class; ``mixing`` adds the mean of the batch."""

    def __init__(self, scale: float, *, mixing: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.scale, self.mixing = nn.Linear(6, 3), scale, mixing

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x)
        return nn.functional.pad(self.scale * (z + self.mixing * z.mean(dim=0)), (0, 1), value=-torch.inf)


@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_a_masked_class_and_small_logits_hide_nothing_and_prove_nothing(scale: float) -> None:
    name, x = "a prediction does not depend on the batch", torch.rand(12, 6)
    for mixing in (0.0, 0.1):
        net = Spoiled(scale, mixing=mixing).eval()
        report = checklist(net, x, net(x).argmax(1), claim=Claim(eps=0.05, clean_accuracy=1.0), steps=4)
        assert report[name].passed == (mixing == 0), str(report)


def test_wrong_units_end_the_matter() -> None:
    x, y = digits(20)
    claim = Claim(eps=0.3, clean_accuracy=0.98)
    for wrong_x, wrong_claim in (
        ((x - 0.1307) / 0.3081, claim),  # normalized outside of the model
        (x, Claim(eps=0.3, clean_accuracy=0.98, bounds=(0.0, 255.0))),
        (x, Claim(eps=8.0, clean_accuracy=0.98)),  # in units of 255
    ):
        report = checklist(zoo.load("mnist_mlp"), wrong_x, y, claim=wrong_claim)
        assert [check.passed for check in report.checks] == [False]


def test_unreported_or_wrong_clean_accuracy_is_flagged() -> None:
    for value in (None, 0.6):
        report = checklist(
            zoo.load("mnist_mlp"), *digits(40), claim=Claim(eps=0.05, clean_accuracy=value), steps=4, queries=10
        )
        assert [check.name for check in report.failed] == ["clean accuracy is reported, and right"]


def test_a_saturated_loss_is_flagged() -> None:
    class Loud(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return 1000 * z

    report = checklist(
        nn.Sequential(zoo.load("mnist_cnn"), Loud()),
        *digits(40),
        claim=Claim(eps=0.2, clean_accuracy=0.98),
        steps=12,
        queries=50,
    )
    assert report["the loss does not decide the outcome"].passed is False
    assert report["gradients are there"].passed is False


@pytest.mark.slow
def test_nothing_of_the_model_is_changed_and_the_report_repeats(broken: dict[str, Broken]) -> None:
    entry = broken["train_mode"]
    before = {name: value.clone() for name, value in entry.model.state_dict().items()}
    modes = [module.training for module in entry.model.modules()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    data = digits(10)
    reports = [str(checklist(entry.model, data, claim=entry.claim, steps=4, queries=10)) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in entry.model.state_dict().items())
    assert modes == [module.training for module in entry.model.modules()]
    assert reports[0] == reports[1]


def test_the_report_reads_well(broken: dict[str, Broken]) -> None:
    entry = broken["normalized_eps"]
    text = str(checklist(entry.model, *digits(10), claim=entry.claim, steps=4, queries=10))
    assert "FAIL the attack uses the budget that is claimed (largest distance / eps 0.308)" in text
    assert "     -> spend eps in the units of the inputs" in text
    assert "-    white box beats transfer" in text


def test_wrong_arguments_are_named() -> None:
    net, data = zoo.load("mnist_mlp"), digits(4)
    claim = Claim(eps=0.1)
    for arguments, match in (
        ((lambda x: x, data, claim), r"^model: want an nn.Module, got function"),
        ((net, data, 0.1), r"^claim: want a Claim, got float"),
        ((net, 3, claim), r"^x: want a Dataset, a pair"),
    ):
        with pytest.raises(TypeError, match=match):
            checklist(*arguments[:2], claim=arguments[2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^steps: want at least 4, got 3"):
        checklist(net, data, claim=claim, steps=3)
    with pytest.raises(TypeError, match=r"^surrogate: want an nn.Module or None"):
        checklist(net, data, claim=claim, surrogate=3)  # type: ignore[arg-type]
    for fields, match in (
        ({"eps": 0.0}, r"^eps: want finite and above 0"),
        ({"eps": 0.1, "norm": "l0"}, r"^norm: want one of"),
        ({"eps": 0.1, "robust_accuracy": 86.0}, r"^robust_accuracy: want a share"),
        ({"eps": 0.1, "bounds": (1.0, 0.0)}, r"^bounds: want \(low, high\)"),
        ({"eps": 0.1, "detector": 3}, r"^detector: want a callable"),
    ):
        with pytest.raises((ValueError, TypeError), match=match):
            Claim(**fields)  # type: ignore[arg-type]
