"""The TPU's compiler: with fakes of it everywhere, and with libtpu in `with_libtpu`, which
scripts/chip.sh runs."""
