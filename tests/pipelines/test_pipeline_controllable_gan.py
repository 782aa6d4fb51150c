"""Gradient ascent to a wanted feature: known directions, closed-form steps and entanglement, every classifier."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification, ViTModel

from hfgen import AutoPipeline, Classifier, ControllableGANPipeline, DCGANGenerator, MLPGenerator
from hfgen.errors import ConfigError
from hfgen.models.outputs import LogitsOutput
from hfgen.registry import SHIM
from tests.helpers import seed


class Quadrants(Classifier):
    """A classifier whose logits are linear in the mean of each quadrant of the image: `matrix` (K, 4), `bias` (K,)."""

    def __init__(self, matrix, bias):
        super().__init__(resolution=8, channels=1, num_classes=len(bias), width=8)
        self.matrix, self.bias = torch.tensor(matrix), torch.tensor(bias)

    def forward(self, x):
        return LogitsOutput(logits=F.avg_pool2d(x, 4).flatten(1) @ self.matrix.T + self.bias)


def quadrant_generator():
    """Return a generator of 8x8 images whose quadrant i is tanh(z_i) all over."""
    net = DCGANGenerator(resolution=8, channels=1, width=4, latent_dim=4, norm="none").eval()
    first, last = (layer for layer in net.modules() if isinstance(layer, torch.nn.ConvTranspose2d))
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        for i in range(4):
            row, column = 2 * (i // 2), 2 * (i % 2)
            first.weight[i, i, row : row + 2, column : column + 2] = 1.0
        first.bias.fill_(50.0)                                                 # ReLU always open
        last.weight[:, :, 1:3, 1:3] = 1.0                                      # every pixel becomes four equal ones
        last.bias.fill_(-4 * 50.0)
    return net


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def known(matrix=((4.0, 0, 0, 0), (0.0, 0, 0, 0), (0.0, 0, 0, 0)), bias=(0.0, 0.5, -1.0)):
    """Return a pipeline where class 0 is the first quadrant's brightness alone, and the others are constant."""
    return quiet(ControllableGANPipeline(quadrant_generator(), Quadrants(matrix, bias)))


def small(**changes):
    """Return a pipeline of tiny random networks."""
    net = DCGANGenerator(**{"resolution": 8, "channels": 1, "width": 8, "latent_dim": 6, **changes}).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    classifier = Classifier(8, changes.get("channels", 1), num_classes=4, width=8).eval()
    return quiet(ControllableGANPipeline(net, classifier))


def vit(channels=3, **changes):
    """Return a tiny random ViT for 8x8 images in patches of 4, whose logits vary."""
    config = ViTConfig(
        image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        num_channels=channels, num_labels=3, **changes,
    )
    net = ViTForImageClassification(config).eval()
    torch.nn.init.normal_(net.classifier.weight)
    return net


def test_the_generator_of_the_oracle_is_what_it_says():
    z = torch.randn(3, 4)
    with torch.no_grad():
        x = quadrant_generator()(z).sample
    torch.testing.assert_close(F.avg_pool2d(x, 4).flatten(1), z.tanh(), atol=1e-4, rtol=0)
    assert F.avg_pool2d(x.square(), 4).flatten(1).sub(z.tanh().square()).abs().max() < 1e-4        # flat quadrants


def test_latents_go_straight_to_the_feature_in_the_fewest_steps_and_nothing_else_moves():
    z = torch.tensor([[-1.0, 0.3, -0.2, 0.7], [-0.35, 1.0, 2.0, -3.0]])
    output = known()(target=0, latents=z, step_size=0.25, threshold=0.8, exploration=0, output_type="pt")

    def probability(z_0):
        return math.exp(4 * math.tanh(z_0)) / (math.exp(4 * math.tanh(z_0)) + math.exp(0.5) + math.exp(-1.0))

    for i in range(2):
        start = float(z[i, 0])
        fewest = next(k for k in range(100) if probability(start + 0.25 * k) >= 0.8)
        assert output.steps[i] == fewest > 0
        assert float(output.latents[i, 0]) == pytest.approx(start + 0.25 * fewest, abs=1e-5)
        assert float(output.probabilities[i, 0]) == pytest.approx(probability(start + 0.25 * fewest), abs=1e-4)
    assert torch.equal(output.latents[:, 1:], z[:, 1:]) and output.reached.all()
    torch.testing.assert_close(output.entanglement, torch.zeros(2), atol=1e-6, rtol=0)


def test_entanglement_is_the_distance_between_the_other_classes():
    pipe = known(matrix=[[4.0, 0, 0, 0], [1.5, 0, 0, 0], [0.0, 0, 0, 0]], bias=[0.0, 0.0, 0.0])
    z = torch.tensor([[-1.0, 0.0, 0.0, 0.0]])
    output = pipe(target=0, latents=z, num_steps=7, threshold=0.999, output_type="pt")
    before, after = (1 / (1 + math.exp(-1.5 * math.tanh(float(end[0, 0])))) for end in (z, output.latents))
    assert float(output.entanglement[0]) == pytest.approx(abs(after - before), abs=1e-5) and after - before > 0.1


def test_entanglement_of_very_certain_classifiers_is_still_exact():
    pipe = known()
    before, after = torch.tensor([[90.0, 1.0, 0.0]]), torch.tensor([[90.0, 0.0, 1.0]])
    expected = (math.e - 1) / (math.e + 1)
    assert float(pipe._entanglement(before, after, torch.tensor([0]))) == pytest.approx(expected, abs=1e-6)


def test_an_image_that_shows_the_feature_rests_and_the_others_go_on():
    pipe = known()
    z = torch.tensor([[2.0, 0.3, 0.1, 0.4], [-2.0, 0.3, 0.1, 0.4]])
    output = pipe(target=0, latents=z, output_type="pt")
    assert output.steps[0] == 0 and torch.equal(output.latents[0], z[0])
    assert output.steps[1] > 10 and output.reached.all()
    with torch.no_grad():
        start = pipe.generator(z).sample[0]
    assert torch.equal(output.images[0], (start / 2 + 0.5).clamp(0, 1))


def test_an_unreachable_feature_is_reported_after_every_step_was_taken():
    z = torch.randn(2, 4)
    output = known(bias=(0.0, 50.0, 0.0))(target=0, latents=z, num_steps=7, step_size=0.5, exploration=0)
    assert output.steps.tolist() == [7, 7] and not output.reached.any()
    expected = z + torch.tensor([3.5, 0.0, 0.0, 0.0])
    torch.testing.assert_close(output.latents, expected, atol=1e-5, rtol=0)


def test_the_prior_pulls_latents_home_where_the_classifier_says_nothing():
    pipe = known(matrix=[[0.0] * 4] * 3)
    z = torch.tensor([[3.0, 0.0, 4.0, 0.0]])
    moved = pipe(target=2, latents=z, num_steps=5, step_size=0.2, prior_weight=0.5, exploration=0).latents
    torch.testing.assert_close(moved, z * (4.0 / 5.0), atol=1e-5, rtol=0)
    assert torch.equal(pipe(target=2, latents=z, num_steps=5, exploration=0).latents, z)


def test_exploration_leaves_the_prior_as_it_is_and_leads_out_of_where_the_gradient_is_stuck():
    blind = known(matrix=[[0.0] * 4] * 3)
    z = torch.randn(2000, 4, generator=seed(3))
    moved = blind(target=2, latents=z, num_steps=60, generator=seed(0)).latents
    torch.testing.assert_close(moved.T.cov(), torch.eye(4), atol=0.15, rtol=0)
    assert moved.mean(0).abs().max() < 0.1
    expected = 1.0
    for k in range(60):
        expected *= math.sqrt(1 - (0.8 * k / 60) ** 2)                         # what is left of the start
    assert abs(float((z * moved).mean()) - expected) < 0.05
    stuck = known(matrix=[[-9.0, 0, 0, 0], [0.0, 0, 0, 0], [9.0, 0, 0, 0]])      # class 1 lies between the others
    far = torch.tensor([[3.0, 0.0, 0.0, 0.0]]).expand(20, 4)
    still = stuck(target=0, latents=far, step_size=1e-6, num_steps=50, exploration=0)
    found = stuck(target=0, latents=far, step_size=1e-6, num_steps=50, generator=seed(0))
    assert not still.reached.any() and found.reached.all()


@pytest.mark.parametrize("classifier", ["hfgen", "vit"])
def test_a_step_goes_along_the_gradient_measured_by_differences(classifier):
    pipe = small(norm="none", channels=1)
    if classifier == "vit":
        pipe = quiet(ControllableGANPipeline(pipe.generator, vit(), image_mean=[0.4], image_std=[0.3]))
    z = torch.randn(2, 6)
    start, end = list(pipe._way(2, [1, 2], 1, None, z, None, 0.05, 0.999, 0.0, 0.0, None)[1])

    def log_probability(points):
        moment = next(pipe._way(len(points), [1, 2], 1, None, points, None, 0.05, 0.999, 0.0, 0.0, None)[1])
        return moment.logits.double().log_softmax(dim=1)[[0, 1], [1, 2]]

    eps = 2e-3
    shifts = eps * torch.eye(6)
    slopes = torch.stack([log_probability(z + e) - log_probability(z - e) for e in shifts], dim=1) / (2 * eps)
    assert torch.cosine_similarity(end.z - start.z, slopes.float()).min() > 0.99
    torch.testing.assert_close((end.z - start.z).norm(dim=1), torch.full((2,), 0.05), atol=1e-5, rtol=0)


def test_what_an_image_becomes_does_not_depend_on_its_batch():
    pipe = small()
    together = pipe(3, [0, 1, 2], 12, generator=seed(5, 6, 7), truncation=1.5, output_type="pt")
    for i, value in enumerate((5, 6, 7)):
        alone = pipe(1, i, 12, generator=[seed(value)], truncation=1.5, output_type="pt")
        torch.testing.assert_close(alone.latents[0], together.latents[i], atol=1e-4, rtol=0)
        torch.testing.assert_close(alone.images[0], together.images[i], atol=1e-4, rtol=0)
        assert alone.steps[0] == together.steps[i]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_found_where_they_are_switched_off_and_networks_stay_as_they_were(mode):
    pipe = small(num_classes=2)
    pipe.generator.train()
    pipe.classifier.train()
    next(pipe.generator.parameters()).requires_grad_(False)
    arguments = {"target": 3, "num_steps": 8, "class_labels": 1, "output_type": "pt"}
    state = {key: tensor.clone() for key, tensor in pipe.generator.state_dict().items()}
    expected = pipe(2, generator=seed(0), **arguments)
    with mode():
        found = pipe(2, generator=seed(0), **arguments)
        assert torch.is_grad_enabled() is False
    assert torch.equal(found.latents, expected.latents) and torch.equal(found.images, expected.images)
    assert not torch.equal(expected.latents, torch.randn(2, 6, generator=seed(0)))
    parameters = [*pipe.generator.parameters(), *pipe.classifier.parameters()]
    assert [p.requires_grad for p in parameters] == [False] + [True] * (len(parameters) - 1)
    assert all(p.grad is None for p in parameters) and pipe.generator.training and pipe.classifier.hidden.training
    assert all(torch.equal(state[key], tensor) for key, tensor in pipe.generator.state_dict().items())


def test_states_lead_from_the_drawn_image_to_the_output():
    pipe = known()
    z = torch.tensor([[-1.0, 0.3, -0.2, 0.7]])
    states = list(pipe.states(target=0, latents=z, generator=seed(1)))
    output = pipe(target=0, latents=z, generator=seed(1), output_type="pt")
    with torch.no_grad():
        assert torch.equal(states[0], pipe.generator(z).sample)
    assert torch.equal((states[-1] / 2 + 0.5).clamp(0, 1), output.images)
    assert len(states) == int(output.steps[0]) + 1 < 100
    assert not any(x.requires_grad for x in states)
    assert len(list(known(bias=(0.0, 50.0, 0.0)).states(target=0, num_steps=4))) == 5


def test_a_tuple_holds_what_the_output_holds():
    pipe = known()
    output = pipe(2, 0, 3, generator=seed(0), output_type="pt")
    parts = pipe(2, 0, 3, generator=seed(0), output_type="pt", return_dict=False)
    assert len(parts) == 6 and all(torch.equal(a, b) for a, b in zip(parts, output.values(), strict=True))


def test_directions_and_interpolation_are_those_of_the_generator_alone():
    pipe = known()
    a, b = torch.randn(4), torch.randn(4)
    output = pipe.interpolate(a, b, 3, output_type="pt")
    with torch.no_grad():
        expected = pipe.generator(output.latents).sample
    assert torch.equal(output.images, (expected / 2 + 0.5).clamp(0, 1)) and torch.equal(output.latents[2], b)


def test_every_label_of_a_multi_label_classifier_counts_for_itself():
    pipe = small(channels=3, norm="none")
    pipe = quiet(ControllableGANPipeline(pipe.generator, vit(problem_type="multi_label_classification")))
    z = torch.randn(2, 6)
    output = pipe(target=[0, 2], latents=z, num_steps=6, threshold=0.99, exploration=0, output_type="pt")
    with torch.no_grad():
        images = (pipe.generator(latents).sample for latents in (z, output.latents))
        before, after = (pipe.classifier(x).logits.sigmoid() for x in images)
    torch.testing.assert_close(output.probabilities, after, atol=1e-5, rtol=0)
    assert (after[[0, 1], [0, 2]] > before[[0, 1], [0, 2]]).all()
    others = (after - before).abs()[torch.tensor([[False, True, True], [True, True, False]])].reshape(2, 2)
    torch.testing.assert_close(output.entanglement, others.mean(dim=1), atol=1e-5, rtol=0)


def test_grey_images_are_shown_in_three_channels_in_the_size_and_range_of_the_classifier():
    generator = small(resolution=(12, 16)).generator
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    pipe = quiet(ControllableGANPipeline(generator, vit(), image_mean=mean, image_std=std))
    z = torch.randn(2, 6)
    output = pipe(target=1, latents=z, num_steps=1, step_size=1e-9)
    with torch.no_grad():
        grey = generator(z).sample.repeat(1, 3, 1, 1)
        pixels = F.interpolate(grey, (8, 8), mode="bilinear", antialias=True) / 2 + 0.5
        pixels = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        expected = pipe.classifier(pixels).logits.softmax(dim=1)
    torch.testing.assert_close(output.probabilities, expected, atol=1e-5, rtol=0)


def resnet():
    return ResNetForImageClassification(ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=3
    )).eval()


@pytest.mark.parametrize("loader", [ControllableGANPipeline, AutoPipeline])
@pytest.mark.parametrize("kind", ["hfgen", "vit", "resnet"])
def test_a_round_trip_keeps_every_bit_and_every_setting(tmp_path, loader, kind):
    pipe = small()
    if kind != "hfgen":
        classifier = vit() if kind == "vit" else resnet()
        pipe = quiet(ControllableGANPipeline(pipe.generator, classifier, image_mean=[0.4], image_std=[1]))
    pipe.save_pretrained(tmp_path / "saved")
    again = quiet(loader.from_pretrained(tmp_path / "saved"))
    before, after = (one(2, 1, 5, generator=seed(0), output_type="pt") for one in (pipe, again))
    for name in ("images", "latents", "reached", "steps", "probabilities", "entanglement"):
        assert torch.equal(before[name], after[name]), name
    assert type(again) is ControllableGANPipeline and type(again.classifier) is type(pipe.classifier)
    assert not again.classifier.training and not again.generator.training
    index = json.loads((tmp_path / "saved/model_index.json").read_text())
    library = [SHIM, "Classifier"] if kind == "hfgen" else ["transformers", type(pipe.classifier).__name__]
    assert index["_class_name"] == ["pipeline", "ControllableGANPipeline"] and index["classifier"] == library
    expected = {"image_mean": None, "image_std": None} if kind == "hfgen" else {"image_mean": [0.4], "image_std": [1]}
    assert {key: index[key] for key in expected} == expected
    assert {key: again.config[key] for key in expected} == expected


def test_stock_diffusers_runs_a_saved_folder_through_the_shims(python, tmp_path):
    pipe = quiet(ControllableGANPipeline(small().generator, vit(), image_mean=[0.4], image_std=[0.3]))
    pipe.save_pretrained(tmp_path / "saved")
    program = """
        import sys, numpy as np, torch, diffusers
        pipe = diffusers.DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
        assert type(pipe).__name__ == "ControllableGANPipeline" and pipe.config.image_mean == [0.4]
        images = pipe(2, 1, 5, generator=torch.Generator().manual_seed(0), output_type="np").images
        np.save(sys.argv[1] + "/images.npy", images)
    """
    result = python(program, tmp_path / "saved")
    assert result.returncode == 0, result.stderr
    images = pipe(2, 1, 5, generator=seed(0), output_type="np").images
    np.testing.assert_allclose(np.load(tmp_path / "saved/images.npy"), images, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("argument", "wrong", "kind"),
    [
        ("target", None, ValueError), ("target", 3, ValueError), ("target", [0], ValueError),
        ("target", 0.5, TypeError), ("num_steps", 0, ValueError), ("num_steps", 2.5, TypeError),
        ("num_steps", True, TypeError), ("step_size", 0, ValueError), ("step_size", "1", TypeError),
        ("threshold", 1.0, ValueError), ("threshold", 0.0, ValueError), ("threshold", float("nan"), ValueError),
        ("prior_weight", -1.0, ValueError), ("exploration", 1.0, ValueError),
        ("exploration", "1", TypeError), ("batch_size", 0, ValueError), ("output_type", "jpg", ValueError),
        ("class_labels", 0, ValueError), ("latents", torch.zeros(2, 3), ValueError), ("truncation", 0, ValueError),
    ],
)
def test_wrong_arguments_are_named(argument, wrong, kind):
    with pytest.raises(kind, match=argument) as caught:
        known()(**{"batch_size": 2, "target": 0, argument: wrong})
    assert isinstance(caught.value, ConfigError)
    if argument != "output_type":
        with pytest.raises(kind, match=argument):
            known().states(**{"batch_size": 2, "target": 0, argument: wrong})


def test_networks_that_cannot_work_together_are_refused():
    images, colour = DCGANGenerator(8, 1, 4), DCGANGenerator(8, 3, 4)
    with pytest.raises(ConfigError, match="a classifier takes images only"):
        ControllableGANPipeline(MLPGenerator(hidden=8), Classifier(8))
    with pytest.raises(ConfigError, match="classifier must take 3 channels"):
        ControllableGANPipeline(colour, Classifier(8))
    with pytest.raises(ConfigError, match=r"classifier must be .*ViTForImageClassification.* got ViTModel"):
        ControllableGANPipeline(images, ViTModel(vit().config))
    with pytest.raises(ConfigError, match="regression"):
        ControllableGANPipeline(images, vit(problem_type="regression"))
    for settings in ({"image_mean": [0.5, 0.5]}, {"image_std": [0.0]}, {"image_std": []}):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            ControllableGANPipeline(images, vit(), **settings)
