# Short names; tests/run does the work and needs no just.

# The quick loop: format, lints, tests on SQLite
check:
    tests/run quick

# Everything, as CI does it, or the parts named
test *parts:
    tests/run {{ parts }}

# Puts the code into its format
fmt:
    cargo fmt --all

# Roost with its demo, built for speed
demo:
    cargo run --release --locked -- up --demo

# The speed table
bench *figures:
    cargo run --profile bench --locked -p bench -- {{ figures }}

# A shell with a private RabbitMQ and PostgreSQL
services:
    tests/with-services bash
