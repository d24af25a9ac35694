"""An evaluation as a table: one row per class, the overall scores below."""

from pathlib import Path

from rich.markup import escape

from fcn_deploy.cli.console import out, plain_table, print_line
from fcn_deploy.evaluation.page import score, share
from fcn_deploy.evaluation.result import Evaluation


def print_evaluation(result: Evaluation, output: Path) -> None:
    """Print the classes that occur, the overall scores, and what deployment cost."""
    count = len(result.images)
    images = f"images: {count}" if not result.failures else f"images: {count} of {count + len(result.failures)}"
    print_line(f"{escape(result.source.runtime)}, {escape(result.source.dataset)}, {images}")
    _print_classes(result)
    found = result.scores
    print_line(
        f"[bold]mean IU {score(found.mean_iu)}[/], pixel accuracy {share(found.pixel_accuracy)}, "
        f"mean accuracy {share(found.mean_accuracy)}, frequency-weighted IU {score(found.frequency_weighted_iu)}"
    )
    _print_loss(result)
    if result.resumed:
        print_line(f"finished by an earlier run: {result.resumed} of {count}")
    print_line(f"[bold]{result.info.network}[/], {result.info.provenance}")
    print_line(f"wrote {escape(str(output))}")
    if result.info.provenance.untrained:
        print_line("untrained weights: the scores mean nothing", to_stderr=True)


def _print_classes(result: Evaluation) -> None:
    theirs = ("PyTorch's",) if result.pytorch_scores is not None else ()
    table = plain_table("", "class", "IU", *theirs, "accuracy", "of the truth")
    shown = [of_class for of_class in result.classes if of_class.occurs]
    for of_class in shown:
        both = (score(of_class.iu), *([score(of_class.pytorch_iu)] if theirs else []))
        table.add_row(escape(of_class.name), *both, share(of_class.accuracy), share(of_class.truth_share))
    out.print(table)
    left_out = len(result.classes) - len(shown)
    if left_out:
        print_line(f"{left_out} classes are neither in the truth nor among the labels")


def _print_loss(result: Evaluation) -> None:
    both, pytorch = result.agreement, result.pytorch_scores
    if both is None or pytorch is None:
        return
    print_line(
        f"[bold]mean IU lost in deployment: {score(result.mean_iu_lost)}[/] ({escape(result.source.pytorch or '')} has "
        f"{score(pytorch.mean_iu)}); same label in {both.pixel_accuracy:.3%} of the pixels, mean IU between both "
        f"{score(both.mean_iu)}"
    )
