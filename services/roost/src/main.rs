//! The one binary; everything it does is in the library beside it, so that tests start the very same thing.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    roost::main()
}
