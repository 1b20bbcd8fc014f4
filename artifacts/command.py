"""`parityline list`, `show`, `verify` and `promote`: what is in the store."""

from __future__ import annotations

from typing import Annotated

import typer

from artifacts.completion import complete_version
from artifacts.options import BackendOption, BundleArgument, DeviceOption, JsonOption
from artifacts.terminal import is_terminal, open_console, say, say_json


def list_(as_json: JsonOption = False) -> None:
    """List the bundles in the store.

    A star marks the promoted version of each name: the one that NAME alone stands for.

    With --json: an array, empty for an empty store, of name, version, reference, promoted, path,
    created, task, labels, input and test (accuracy, log_loss, auc and average_precision, each with
    value, low and high); of a bundle that cannot be read, error in place of the last five.

    Examples:
        parityline list
        parityline list --json | jq -r '.[] | select(.promoted) | .reference'
    """
    from artifacts.facts import list_facts
    from artifacts.references import store_path
    from artifacts.summary import list_lines

    store = store_path()
    entries = list_facts(store)
    if as_json:
        say_json(entries)
    elif not entries:
        say(f"no bundles in {store}; train one: parityline train digits")
    elif is_terminal():
        from artifacts.tables import print_list

        print_list(open_console(), entries)
    else:
        for line in list_lines(entries):
            say(line)


def show(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Show what a bundle is: its data, figures and files.

    With --json: reference, path, promoted, and all that the manifest says: labels, input, metrics
    with their intervals, parity, files with their digests, the whole recipe.

    Examples:
        parityline show digits
        parityline show digits --json | jq .metrics.test.accuracy
    """
    from artifacts.references import open_reference, store_path

    store = store_path()
    found = open_reference(store, bundle)
    if as_json:
        from artifacts.facts import bundle_facts

        say_json(bundle_facts(found, store))
    elif is_terminal():
        from artifacts.tables import print_bundle

        print_bundle(open_console(), found)
    else:
        from artifacts.summary import summary_lines

        for line in summary_lines(found):
            say(line)


def verify(
    bundle: BundleArgument,
    backend: BackendOption = "onnx",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Check a bundle's files, and its answers on this machine.

    Every file's digest, then the golden rows on a backend and device. What is not as it was at
    release is an error, exit status 1.

    With --json: reference, path, backend, device, files and golden_rows (how many), max_abs_diff
    (of logits) and label_disagreements. Where the check fails, stdout is empty.

    Examples:
        parityline verify digits
        parityline verify digits --backend torchscript --json
    """
    from artifacts import open_bundle

    predictor = open_bundle(bundle, backend=backend, device=device)
    if as_json:
        from artifacts.facts import verify_facts

        say_json(verify_facts(predictor))
        return
    manifest, checked = predictor.manifest, predictor.checked
    say(f"{manifest.reference}: {len(manifest.files)} files are as released")
    say(
        f"{predictor.backend} on {predictor.device}: {checked.rows} golden rows agree with the "
        f"trained model, largest difference of logits {checked.max_abs_diff:.2g}"
    )


def promote(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="NAME@VERSION",
            help="What NAME alone shall mean.",
            autocompletion=complete_version,
            show_default=False,
        ),
    ],
) -> None:
    """Choose which version a name stands for.

    It is verified first, as `parityline verify` does.

    Examples:
        parityline promote digits@0123456789ab
    """
    from artifacts import open_bundle
    from artifacts.references import promote as promote_bundle
    from artifacts.references import store_path

    if "@" in reference:
        open_bundle(reference, device="cpu")
    promote_bundle(store_path(), reference)
    name, _, version = reference.partition("@")
    say(f"{name} now means {version}")
