#!/usr/bin/env bash
# What every change must pass, cheapest first. Needs the toolchain; the programs that tests talk to come by .ci/run.
set -euo pipefail
cd "$(dirname "$0")/.."

step() {
    echo
    echo "== $*"
    "$@"
}

# The README's own test command, so that what newcomers type is what is checked.
test_command=$(sed -n '/^Run the tests:/,/^```$/ { /^cargo test/p }' README.md)
[ -n "$test_command" ] || { echo "README.md names no test command" >&2; exit 1; }
demo_command=$(sed -n '/^## Try it/,/^## Use it/ { /^cargo run .* demo$/p }' README.md)
[ -n "$demo_command" ] || { echo "README.md names no demo command" >&2; exit 1; }

step cargo fmt --all --check
step cargo clippy --workspace --all-targets --locked -- -D warnings
RUSTDOCFLAGS="-D warnings" step cargo doc --workspace --no-deps --document-private-items --locked
# Installs what the tests of other sides and of the Worker need, so that none of them waits for a download.
step cargo test --workspace --locked --test interop -- the_published_packages_are_installed_as_pinned
step cargo test --workspace --locked --test e2e -- is_installed_as_pinned
step cargo test --workspace --locked --test worker -- the_runtime_is_installed_as_pinned
step cargo test --workspace --locked --test dashboard -- the_browsers_packages_are_installed_as_pinned
# Splitting into words is meant: it is a command line.
# shellcheck disable=SC2086
step $test_command
# shellcheck disable=SC2086
step $demo_command
echo
echo "all passed"
