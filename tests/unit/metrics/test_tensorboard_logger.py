import io
import time

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mcframe.hookspecs import Histogram, RunStart
from mcframe.metrics.tensorboard_logger import DIRECTORY, TensorBoardLogger


def read(run_dir):
    events = EventAccumulator(str(run_dir / DIRECTORY))
    events.Reload()
    return events


def curve(run_dir, name):
    return [(event.step, event.value) for event in read(run_dir).Scalars(name)]


def test_curves_with_tokens_as_x(tmp_path):
    logger = TensorBoardLogger(RunStart(tmp_path, {}, None))
    logger.write(2048, 1, {"train/loss": 5.5, "mc/gist_entry_delta/1": 0.625})
    logger.write(2**33, 2, {"train/loss": 4.5})
    assert curve(tmp_path, "train/loss") == [(2048, 5.5), (2**33, 4.5)]  # flushed: readable before it is closed
    logger.close()
    assert curve(tmp_path, "mc/gist_entry_delta/1") == [(2048, 0.625)]
    assert set(read(tmp_path).Tags()["scalars"]) == {"train/loss", "mc/gist_entry_delta/1"}


def test_texts_images_and_histograms(tmp_path):
    logger = TensorBoardLogger(RunStart(tmp_path, {}, None))
    image = np.zeros((4, 6, 3), np.uint8)
    image[0, 5] = (255, 128, 0)
    logger.text(2048, "contexts", "··1·|··\n·11·|··")
    logger.image(2048, "mc/scores", image)
    logger.histogram(2048, "mc/score/0", Histogram([-1.0, 0.0, 2.0], [3, 5]))
    logger.close()
    (text,) = read(tmp_path).Tensors("contexts/text_summary")
    assert text.step == 2048
    assert text.tensor_proto.string_val[0].decode() == "    ··1·|··\n    ·11·|··"
    (shown,) = read(tmp_path).Images("mc/scores")
    assert (shown.step, shown.height, shown.width) == (2048, 4, 6)
    decoded = np.asarray(Image.open(io.BytesIO(shown.encoded_image_string)))
    assert (decoded == image).all()
    (counted,) = read(tmp_path).Histograms("mc/score/0")
    value = counted.histogram_value
    assert (counted.step, value.min, value.max, value.num) == (2048, -1.0, 2.0, 8)
    assert (list(value.bucket_limit), list(value.bucket)) == ([0.0, 2.0], [3.0, 5.0])
    assert (value.sum, value.sum_squares) == (3 * -0.5 + 5 * 1.0, 3 * 0.25 + 5 * 1.0)


@pytest.mark.parametrize(("resume", "expected"), [(20, [1.0, 2.0, 30.0]), (None, [30.0])])
def test_resuming_hides_events_after_that_point(tmp_path, resume, expected):
    logger = TensorBoardLogger(RunStart(tmp_path, {}, None))
    for tokens, loss in [(10, 1.0), (20, 2.0), (30, 3.0), (40, 4.0)]:
        logger.write(tokens, tokens, {"train/loss": loss})
    logger.close()
    # Files are read in the order of their names: the second they were begun in, then a counter without leading zeros.
    time.sleep(1.1)
    logger = TensorBoardLogger(RunStart(tmp_path, {}, resume))
    logger.write(30, 30, {"train/loss": 30.0})
    logger.close()
    assert [value for _, value in curve(tmp_path, "train/loss")] == expected


def test_location_is_a_command(tmp_path):
    logger = TensorBoardLogger(RunStart(tmp_path / "my run", {}, None))
    logger.close()
    assert logger.location == ("TensorBoard", f"tensorboard --logdir '{tmp_path}/my run/tensorboard'")
