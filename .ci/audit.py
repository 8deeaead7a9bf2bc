"""Writes the software bill of materials, and asks whether any of it has a known vulnerability.

Fails where something is found. Where the service that knows cannot be reached, or knows none of the packages, it says
that nothing was audited, which is no pass.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent
BILL = Path("artefacts/sbom.cdx.json")
PATIENCE_S = 300


def main() -> int:
    BILL.parent.mkdir(exist_ok=True)
    subprocess.run(
        [BIN / "cyclonedx-py", "environment", "--output-reproducible", "--of", "JSON", "-o", BILL, BIN.parent],
        check=True,
    )
    components = json.loads(BILL.read_text())["components"]
    print(f"{BILL}: {len(components)} components")
    try:
        asked = subprocess.run(
            [BIN / "pip-audit", "--progress-spinner", "off", "--skip-editable", "--format", "json"],
            capture_output=True, text=True, timeout=PATIENCE_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        print(f"NOT AUDITED: no answer within {PATIENCE_S} s")
        return 0
    try:
        packages = json.loads(asked.stdout)["dependencies"]
    except ValueError:
        print(f"NOT AUDITED: pip-audit could not ask: {asked.stderr.strip().splitlines()[-1:]}")
        return 0
    audited = [package for package in packages if "skip_reason" not in package]
    found = [(package["name"], package["version"], one["id"]) for package in audited for one in package["vulns"]]
    for name, version, id in found:
        print(f"VULNERABLE: {name} {version}: {id}")
    if not audited:
        print(f"NOT AUDITED: none of {len(packages)} packages is known where pip-audit asks")
    else:
        print(f"{len(audited)} of {len(packages)} packages audited, {len(found)} vulnerabilities")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
