"""Shared fixtures: a tiny model and two short runs, made once a session."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import checked_shapes  # noqa: F401
import hypothesis_profile  # noqa: F401
import jax
import pytest
from convert_cases import GOLDEN, options_of
from filelock import FileLock
from jax._src.lru_cache import LRUCache
from model_cases import CALIBRATION_IMAGES, pretrained, tiny_config
from train_cases import run_compress, run_pretrain

import nec_jax
from nec_jax import NecParams, calibrate
from train.tasks import first_density


def pytest_configure(config: pytest.Config) -> None:
    """What is compiled is kept: both workers and the next run share programs.

    These are of low effort: most of a first run is compilation.
    """
    flags = " --xla_backend_optimization_level=0"
    if jax.__version_info__ < (0, 11):  # XLA refuses flags that it does not know
        flags += " --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + flags
    LRUCache.put = put_whole
    settings = {
        "compilation_cache_dir": str(config.cache.mkdir("jax")),
        "persistent_cache_min_compile_time_secs": 0,
    }
    for name, value in settings.items():
        jax.config.update(f"jax_{name}", value)
        os.environ[f"JAX_{name.upper()}"] = str(value)
    # Processes that tests start have a cache of their own: they write as JAX does, and tests kill
    # some of them, so that it may come to hold half an entry. They only warn of that.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(config.cache.mkdir("jax-processes"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first, and short ones last: both workers are to end together."""
    here = Path(__file__).parent
    items.sort(key=lambda item: "train" not in item.path.parts and item.path.parent != here)


def put_whole(self: LRUCache, key: str, value: bytes) -> None:
    """`LRUCache.put`, but whole or not at all: two workers share the cache.

    JAX (0.10) writes an entry in place, and locks it only where the cache has a maximum size. What
    the other worker reads meanwhile is half an entry, which JAX warns of.
    """
    path = Path(self.path) / f"{key}-cache"
    if not path.exists():
        part = path.with_name(f"{key}.{os.getpid()}-{threading.get_ident()}")
        part.write_bytes(value)
        part.replace(path)


@pytest.fixture(scope="session", autouse=True)
def _short_fit(pytestconfig: pytest.Config) -> Iterator[None]:
    """The densities that a run starts from are fitted in few steps, but in slow tests.

    In programs of low effort, the fit would take longer than all else that a short run does.
    """
    with pytest.MonkeyPatch.context() as patch:
        if pytestconfig.option.markexpr != "slow":
            patch.setattr(first_density, "FIT_STEPS", 20)
            patch.setattr(first_density, "TRY_STEPS", 10)
        yield


@pytest.fixture(scope="session")
def bare_model() -> NecParams:
    """A tiny model without a codec."""
    return pretrained(tiny_config(), CALIBRATION_IMAGES)


@pytest.fixture(scope="session")
def grid_only_model() -> NecParams:
    """A tiny model with a codec that does not code the class token."""
    images = CALIBRATION_IMAGES[:8]
    return calibrate(pretrained(tiny_config(code_class_token=False), images), images)


@pytest.fixture(scope="session")
def model(bare_model: NecParams) -> NecParams:
    """A tiny model with a codec."""
    return calibrate(bare_model, CALIBRATION_IMAGES, {"images": 64})


def made_once(
    tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]
) -> Path:
    """A folder with a run's model, which the first process of the tests makes for all."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with FileLock(root / f"{name}.lock"):
        if not (root / name / "model.safetensors").exists():
            make(root / name)
    return root / name


@pytest.fixture(scope="session")
def smoke_mae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of a short pre-training run."""
    return made_once(tmp_path_factory, "mae", run_pretrain) / "model.safetensors"


@pytest.fixture(scope="session")
def smoke_nec(smoke_mae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of a short compression run."""
    return made_once(tmp_path_factory, "nec", lambda folder: run_compress(smoke_mae, folder))


@pytest.fixture(scope="session")
def encoder_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An imported encoder without decoder: 32 px in patches of 8."""
    path = tmp_path_factory.mktemp("import") / "timm.safetensors"
    source = GOLDEN / "timm-registers/model.safetensors"
    nec_jax.save(nec_jax.convert_checkpoint(source, **options_of("timm-registers")), path)
    return path
