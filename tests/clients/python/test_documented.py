"""What the documents show, in Python and with curl. `test_keys.py` has their clients refused first."""

import pytest
from documented import does_what_it_says, examples, start


@pytest.mark.parametrize("language, code", examples())
def test_an_example_does_what_it_says(base_url, tmp_path, language, code):
    assert does_what_it_says(start(language, code, base_url, tmp_path), code)
