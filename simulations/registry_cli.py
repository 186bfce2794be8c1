"""``fedslm adapter list|show|add|promote|rollback|verify|export|clean|reseal``: the registry.

Every command takes a server's folder, or a registry's own folder and the key that signs it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from server.registry import AdapterRegistry, AdapterVersion

LEAST_DIGITS = 8

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Folder = Annotated[Path, typer.Argument(help="A server's folder, or an adapter registry.")]
Digest = Annotated[
    str, typer.Argument(help="A version's digest, or its first digits (8 at least).")
]
KeyOption = Annotated[
    Path | None,
    typer.Option("--key", help="Key that signs adapters; default keys/adapter.key of a server."),
]
SealingOption = Annotated[
    Path | None,
    typer.Option(
        "--sealing-keys",
        help="Keys that encrypt files at rest; default keys/sealing.keys of a server, if it "
        "exists. FEDSLM_SEALING_KEYS comes first.",
    ),
]
PublicKeyOption = Annotated[
    str | None,
    typer.Option(
        "--public-key", metavar="HEX", help="The key that signed the registry, without its file."
    ),
]


def adapter_list(
    folder: Folder,
    key: KeyOption = None,
    public_key: PublicKeyOption = None,
    as_json: AsJson = False,
) -> None:
    """List the versions of a registry, newest first."""
    versions = open_registry(folder, key=key, public_key=public_key, write=False).versions()
    if as_json:
        _print_json({"adapters": [version.to_dict() for version in versions]})
        return
    for version in versions:
        typer.echo(_line(version))
    if not versions:
        typer.echo("There are no adapters yet.", err=True)


def adapter_show(
    folder: Folder,
    digest: Digest,
    key: KeyOption = None,
    public_key: PublicKeyOption = None,
    as_json: AsJson = False,
) -> None:
    """Show a version: what it was trained on, what is claimed, what the audit found."""
    version = find_version(
        open_registry(folder, key=key, public_key=public_key, write=False), digest
    )
    if as_json:
        _print_json(version.to_dict())
        return
    facts = version.facts
    typer.echo(_line(version))
    typer.echo(f"  digest    {version.digest}")
    typer.echo(f"  base      {facts.base_digest}")
    typer.echo(f"  plan      {facts.plan_digest or 'none'}")
    typer.echo(f"  ledger    {facts.ledger_head or 'none'}")
    typer.echo(f"  parent    {facts.parent or 'none'}")
    typer.echo(f"  privacy   {_privacy(version)}")
    typer.echo(f"  audit     {_audit(version)}")
    typer.echo(f"  signed by {version.signature.public_key}")
    for entry in facts.files:
        typer.echo(f"  {entry.size:>10}  {entry.sha256[:12]}  {entry.name}")


def adapter_add(
    folder: Folder,
    run_dir: Annotated[Path, typer.Argument(help="A finished run, or a released adapter.")],
    name: Annotated[
        str | None, typer.Option(help="Of the line of adapters; default the folder's.")
    ] = None,
    parent: Annotated[
        str | None, typer.Option(help="Digest of the version that training went on from.")
    ] = None,
    audit_key: Annotated[
        str | None, typer.Option(metavar="HEX", help="The key that must have signed the audit.")
    ] = None,
    withheld: Annotated[
        bool, typer.Option("--withheld", help="Keep it as evidence; it can never be used.")
    ] = False,
    key: KeyOption = None,
    sealing_keys: SealingOption = None,
    as_json: AsJson = False,
) -> None:
    """Add the adapter of a run as a version; it is not in use before it is promoted."""
    from server.registry import add_run

    registry = open_registry(folder, key=key, sealing=sealing_keys, write=True)
    version = add_run(
        registry, run_dir, name=name, parent=parent, audit_key=audit_key, withheld=withheld
    )
    _print_version("added", version, as_json=as_json)


def adapter_promote(
    folder: Folder,
    digest: Digest,
    unaudited: Annotated[
        bool, typer.Option("--unaudited", help="Even without an audit; devices refuse it then.")
    ] = False,
    key: KeyOption = None,
    sealing_keys: SealingOption = None,
    as_json: AsJson = False,
) -> None:
    """Put a version in use: devices fetch it from now on."""
    registry = open_registry(folder, key=key, sealing=sealing_keys, write=True)
    version = registry.promote(find_version(registry, digest).digest, unaudited=unaudited)
    _print_version("in use", version, as_json=as_json)


def adapter_rollback(
    folder: Folder,
    key: KeyOption = None,
    sealing_keys: SealingOption = None,
    as_json: AsJson = False,
) -> None:
    """Put the version in use that was before the current one; devices follow the signed order."""
    version = open_registry(folder, key=key, sealing=sealing_keys, write=True).rollback()
    _print_version("in use", version, as_json=as_json)


def adapter_verify(
    folder: Folder,
    key: KeyOption = None,
    public_key: PublicKeyOption = None,
    sealing_keys: SealingOption = None,
    as_json: AsJson = False,
) -> None:
    """Check signatures, the chain of orders, and every byte of every file; exit 1 if one fails."""
    from server.registry import verify_registry

    report = verify_registry(
        open_registry(folder, key=key, public_key=public_key, sealing=sealing_keys, write=False)
    )
    if as_json:
        _print_json(report.to_dict())
    else:
        typer.echo(
            f"{report.versions} versions, {report.orders} orders, {report.files} files of "
            f"{report.bytes} bytes."
        )
        for problem in report.problems:
            typer.echo(f"problem: {problem}")
        if report.leftovers:
            typer.echo(f"{report.leftovers} files belong to nothing: fedslm adapter clean")
    if not report.holds:
        raise typer.Exit(1)


def adapter_export(
    folder: Folder,
    digest: Digest,
    to: Annotated[Path, typer.Option(help="A new folder; PEFT loads it.")],
    key: KeyOption = None,
    public_key: PublicKeyOption = None,
    sealing_keys: SealingOption = None,
    as_json: AsJson = False,
) -> None:
    """Write a version's files, manifest and signature into a new folder, every byte checked."""
    from server.registry.export import export_version

    registry = open_registry(
        folder, key=key, public_key=public_key, sealing=sealing_keys, write=False
    )
    version = find_version(registry, digest)
    export_version(registry, version.digest, to)
    _print_version("exported", version, as_json=as_json)


def adapter_clean(
    folder: Folder,
    remove: Annotated[
        list[str] | None, typer.Option(help="Forget this version too; repeatable.")
    ] = None,
    key: KeyOption = None,
    as_json: AsJson = False,
) -> None:
    """Remove files that belong to no version, and what crashes left behind."""
    registry = open_registry(folder, key=key, write=True)
    for digest in remove or []:
        registry.remove(find_version(registry, digest).digest)
    found = registry.collect()
    if as_json:
        _print_json({"blobs": found.blobs, "strangers": found.strangers, "bytes": found.bytes})
    else:
        typer.echo(f"Removed {found.blobs + found.strangers} files, {found.bytes} bytes.")


def adapter_reseal(
    folder: Folder,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Put a new key in front of the key file first.")
    ] = False,
    key: KeyOption = None,
    sealing_keys: SealingOption = None,
    as_json: AsJson = False,
) -> None:
    """Encrypt every file of a registry with the newest key."""
    from server.registry.opening import SEALING_KEYS
    from shared.errors import UsageError
    from shared.sealingkeys import VARIABLE, find_sealer, rotate_key_file

    path = sealing_keys or _server_file(folder, SEALING_KEYS)
    if rotate:
        if path is None or os.environ.get(VARIABLE):
            msg = f"--rotate changes a key file, found {'none' if path is None else VARIABLE}."
            raise UsageError(msg, hint="Give --sealing-keys FILE, with the variable not set.")
        rotate_key_file(path)
    if find_sealer(path, os.environ) is None:
        msg = "There is no key to encrypt with."
        raise UsageError(msg, hint="Add --rotate to make one, or set FEDSLM_SEALING_KEYS.")
    changed = open_registry(folder, key=key, sealing=path, write=True).reseal()
    if as_json:
        _print_json({"resealed": changed})
    else:
        typer.echo(f"{changed} files were encrypted with the newest key.")


def open_registry(
    folder: Path,
    *,
    key: Path | None,
    write: bool,
    public_key: str | None = None,
    sealing: Path | None = None,
) -> AdapterRegistry:
    """Open the registry of a server's folder, or a registry's own folder."""
    from server.registry import AdapterRegistry
    from server.registry.opening import SEALING_KEYS
    from shared.crypto import SigningKey
    from shared.errors import FleetError, UsageError
    from shared.sealingkeys import find_sealer

    root = folder / "adapters" if (folder / "server.toml").exists() else folder
    if not write and not (root / "registry.json").exists():
        msg = f"{folder.name!r} holds no adapter registry."
        raise FleetError(msg, hint="Give a server's folder, or its adapters folder.")
    sealer = find_sealer(sealing or _server_file(folder, SEALING_KEYS), os.environ)
    if public_key is not None:
        return AdapterRegistry(root, trusted=public_key, sealer=sealer)
    path = key or _server_file(folder, "adapter.key")
    if path is None or not path.exists():
        msg = "The key that signs adapters is not here."
        raise UsageError(msg, hint="Give a server's folder, or --key FILE.")
    signer = SigningKey.load_or_create(path)
    return AdapterRegistry(root, signer=signer, sealer=sealer)


def _server_file(folder: Path, name: str) -> Path | None:
    """Return where a server keeps a key; None for a registry's own folder."""
    return folder / "keys" / name if (folder / "server.toml").exists() else None


def find_version(registry: AdapterRegistry, digest: str) -> AdapterVersion:
    """Return the one version whose digest begins like this."""
    from shared.errors import AdapterError, UsageError

    if not len(digest) >= LEAST_DIGITS:
        msg = f"digest={digest!r}, expected {LEAST_DIGITS} digits at least."
        raise UsageError(msg, hint="fedslm adapter list prints them.")
    found = [version for version in registry.versions() if version.digest.startswith(digest)]
    if len(found) != 1:
        msg = f"{len(found)} adapters begin with {digest[:64]!r}, expected 1."
        raise AdapterError(msg, hint="fedslm adapter list prints them.")
    return found[0]


def _line(version: AdapterVersion) -> str:
    """Return one line about a version."""
    facts = version.facts
    verdict = facts.verdict or "not audited"
    return (
        f"{version.digest[:12]}  {facts.sequence:>4}  {version.state:<10}  {verdict:<12}  "
        f"{version.created_at}  {facts.name}"
    )


def _privacy(version: AdapterVersion) -> str:
    """Return what is claimed; an epsilon never stands alone."""
    claim = version.facts.privacy
    if claim.epsilon is None:
        return "no epsilon is claimed: nothing bounds what the adapter reveals"
    return (
        f"epsilon {claim.epsilon:.4f} at delta {claim.delta:g}, per {claim.unit}, "
        f"{claim.neighboring_relation} (mode {claim.mode})"
    )


def _audit(version: AdapterVersion) -> str:
    """Return what the audit found, and who signed it."""
    audit = version.facts.audit
    if audit is None:
        return "none was made"
    signed = "not signed" if audit.signed_by is None else f"signed by {audit.signed_by[:12]}"
    return f"{audit.verdict} (profile {audit.profile or 'unknown'}, {signed})"


def _print_version(what: str, version: AdapterVersion, *, as_json: bool) -> None:
    """Print what was done with a version."""
    if as_json:
        _print_json(version.to_dict())
    else:
        typer.echo(f"{what}  {_line(version)}")


def _print_json(value: dict[str, Any]) -> None:
    """Print a JSON object on stdout."""
    typer.echo(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False))
