"""What the rewrites are chosen for when nobody says it."""

from exporters.optimize import Target
from fcn_deploy.runtime.nvidia import driver_cuda_version


def target_of_this_machine() -> Target:
    """CUDA where an NVIDIA driver is installed, the CPU elsewhere."""
    return Target.CPU if driver_cuda_version() is None else Target.CUDA
