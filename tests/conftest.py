"""What has to be set before the first product is computed, as the commands do it; and who runs which tests."""

import pytest

from understudy.process import fix_products, limit_libraries

limit_libraries()
fix_products()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-seeds", default="0-4", help="seeds of the faults that tests/faults injects, first-last")


@pytest.hookimpl(tryfirst=True)  # before the plugin reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole studies first, all by one worker, while the others take the rest file by file (`--dist loadgroup`)."""
    items.sort(key=lambda item: item.get_closest_marker("workflow") is None)  # stable
    for item in items:
        name = "workflow" if item.get_closest_marker("workflow") else item.path.name
        item.add_marker(pytest.mark.xdist_group(name))
