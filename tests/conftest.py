"""What several test files share: loaded models, read only, and one photograph."""

import huggingface_hub
import pytest

from minexp import images, models, samples

USABLE = tuple(name for name in models.available() if models.usable_offline(name))


@pytest.fixture(scope="session", params=USABLE)
def model(request):
    """Every registered classifier whose weights are here, in turn, with these weights."""
    return models.load_model(request.param)


@pytest.fixture(scope="session")
def lite0():
    return models.load_model("efficientnet_lite0")


@pytest.fixture(scope="session")
def mnist_cnn():
    return models.load_model("mnist_cnn")


@pytest.fixture(scope="session")
def coffee_path():
    """A photograph of an espresso, from scikit-image."""
    return samples.bundled_images()["coffee"]


@pytest.fixture(scope="session")
def coffee(coffee_path, lite0):
    """The espresso as efficientnet_lite0's input (1, 3, 224, 224)."""
    return images.load_image(coffee_path, lite0)


@pytest.fixture(scope="session")
def photo_input(model, coffee_path):
    """The espresso as the input of the model under test."""
    return images.load_image(coffee_path, model)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Caches of this test's own, empty."""
    monkeypatch.setenv("MINEXP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("MINEXP_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path
