//! The `tidegate` command: see the library of the same name.

use std::process::ExitCode;

fn main() -> ExitCode {
    tidegate::main(std::env::args_os())
}
