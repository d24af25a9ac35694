"""The ends a graph is given: float images or pixels in, logits or labels out."""

import onnx_ir as ir

from exporters.passes.base import Rewrite, RewriteResult
from exporters.passes.label_head import LabelHead
from exporters.passes.pixel_head import PixelHead
from fcn_deploy.errors import UsageError
from fcn_deploy.model_info import Head, ImageInput


def with_heads(model: ir.Model, image_input: ImageInput, head: Head) -> ir.Model:
    """`model` with the ends asked for; it is left as it was, and the result shares its weights.

    Raises:
        UsageError: the graph cannot have such an end; says why.
    """
    wanted: list[Rewrite] = [PixelHead()] if image_input is ImageInput.UINT8 else []
    wanted += [LabelHead()] if head is Head.LABELS else []
    changed = model.clone() if wanted else model
    for one in wanted:
        result = one(changed)
        refused = [site for site in result.sites if not site.applied] if isinstance(result, RewriteResult) else []
        if refused:
            raise UsageError(f"no {one.name} head: {refused[0].reason}", remedy="Leave --head and --image-input out.")
    return changed
