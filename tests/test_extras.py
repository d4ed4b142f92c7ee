"""What an extra would bring is asked for by its name."""

import pytest

from recjax.errors import ConfigError
from recjax.extras import require


def test_what_is_missing_names_its_extra():
    message = r"needs no_such_library, which is not installed: pip install -e '\.\[report\]'"
    with pytest.raises(ConfigError, match=message):
        require("no_such_library.part", "report")


def test_what_an_installed_library_lacks_is_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "broken_library.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        require("broken_library", "report")
