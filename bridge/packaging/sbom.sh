#!/usr/bin/env bash
# Writes what the daemon and the gateway inside it are made of, as CycloneDX, into target/sbom.
# Needs cargo-cyclonedx (`cargo install cargo-cyclonedx --locked`).
set -euo pipefail
cd "$(dirname "$0")/../.."

command -v cargo-cyclonedx >/dev/null || {
    echo "cargo-cyclonedx is missing: cargo install cargo-cyclonedx --locked" >&2
    exit 1
}
out=${CARGO_TARGET_DIR:-target}/sbom
mkdir -p "$out"
host=$(rustc -vV | sed -n 's/^host: //p')
cargo cyclonedx --quiet --format json --spec-version 1.5 --target "$host" --manifest-path bridge/Cargo.toml \
    --override-filename sbom-of-this-build
# It writes one beside the manifest of each package; what ships is the daemon and the gateway that it carries.
mv bridge/sbom-of-this-build.json "$out/paperclip-bridge.cdx.json"
mv tunnel/gateway/sbom-of-this-build.json "$out/paperclip-bridge-gateway.cdx.json"
find . -path ./target -prune -o -name sbom-of-this-build.json -exec rm {} +
ls -l "$out"
