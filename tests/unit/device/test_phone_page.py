"""`docs/phone.md` explains messages: each must still be one that the code gives."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
FILES = [*ROOT.glob("device/**/*.py"), *ROOT.glob("device/**/*.c"), *ROOT.glob("pipeline/*.py")]
CODE = "".join(path.read_text() for path in FILES)


def test_every_message_that_the_phone_page_explains_is_given_by_the_code() -> None:
    page = (ROOT / "docs/phone.md").read_text().partition("## Messages")[2]
    rows = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 25
    # A message may be broken over two literals in the code.
    code = re.sub(r'"\s*f?"', "", CODE.replace("\\'", "'").replace('\\"', '"'))
    missing = [said for row in rows for said in re.findall(r"`([^`]+)`", row) if said not in code]
    assert missing == []
