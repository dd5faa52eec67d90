import pytest

from llava_compete.data import LlavaDataset
from tests import tiny


@pytest.fixture
def dataset(tmp_path, processor):
    file, images = tiny.write_rows(tmp_path, 5, text_only={1})
    return LlavaDataset(file, images, processor)
