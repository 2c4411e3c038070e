"""The Python API under another floatx: float64 works from end to end, float16 is refused before training."""

import keras
import numpy as np
import pytest

import transfer
from transfer.common.errors import InputError


@pytest.fixture
def floatx(request):
    """Set Keras' floatx within a test."""
    keras.config.set_floatx(request.param)
    yield
    keras.config.set_floatx("float32")


@pytest.mark.parametrize("floatx", ["float64"], indirect=True)
@pytest.mark.parametrize("case", ["small-similar", "large-similar"])
def test_float64_works_from_end_to_end(floatx, case, colors, cache, tmp_path):
    model = transfer.build(case, transfer.load_backbone("DemoCNN", image_size=48), colors.num_classes)
    recipe = transfer.Recipe(label_smoothing=0.1) if case == "large-similar" else None
    transfer.fit(model, colors, epochs=1, cache=cache, recipe=recipe, verbose=0)
    evaluation = transfer.evaluate(model, colors, cache=cache)
    assert evaluation.accuracy > 0.9
    images = np.stack([colors.test.image(i, (48, 48)) for i in range(4)])
    for explain in (transfer.grad_cam, transfer.occlusion):
        assert np.isfinite(explain(model, images)).all()
    assert transfer.strongest_responses(model, images)
    model.save(tmp_path / "model.keras")
    (tmp_path / "labels.txt").write_text("".join(f"{name}\n" for name in colors.class_names))
    run = transfer.load_run(tmp_path / "model.keras")
    paths = [str(colors.test.images[i]) for i in range(4)]
    named = [one.label for one in transfer.predict(run, paths)]
    assert named == [colors.class_names[i] for i in evaluation.predictions[:4]]


@pytest.mark.parametrize("floatx", ["float16", "bfloat16"], indirect=True)
def test_float16_is_refused_before_training(floatx):
    base = transfer.load_backbone("DemoCNN", image_size=48)
    with pytest.raises(InputError, match=r"floatx.*keras\.json"):
        transfer.small_similar(base, 3)
