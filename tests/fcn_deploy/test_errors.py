import math

import pytest

from fcn_deploy.errors import ProviderError, UsageError, check_range
from fcn_deploy.installation import missing_packages, require_extra


@pytest.mark.parametrize("value", [1, 7, 64])
def test_values_within_their_bounds_pass(value: int) -> None:
    check_range("queue size", value, 1, 64, option="--queue-size")


@pytest.mark.parametrize("value", [0, 65, -1, math.nan])
def test_values_out_of_their_bounds_are_named_with_bounds_and_option(value: float) -> None:
    with pytest.raises(UsageError, match=rf"queue size {value} .*1 to 64\n.*--queue-size"):
        check_range("queue size", value, 1, 64, option="--queue-size")


def test_there_may_be_no_upper_bound() -> None:
    check_range("batch", 10**9, 1, option="--batch")

    with pytest.raises(UsageError, match=r"batch 0 .*at least 1"):
        check_range("batch", 0, 1, option="--batch")


def test_missing_packages_are_named_with_their_extra() -> None:
    require_extra("a test", "dev", ["pytest", "numpy"])

    assert missing_packages(["numpy", "no_such_package", "neither_this"]) == ("no_such_package", "neither_this")
    with pytest.raises(UsageError, match=r"^a page needs no_such_package.*\n.*fcn-deploy\[report\]"):
        require_extra("a page", "report", ["numpy", "no_such_package"])
    with pytest.raises(ProviderError):
        require_extra("an engine", "tensorrt", ["no_such_package"], error=ProviderError)
