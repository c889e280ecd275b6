//! The `halter` command.

fn main() {}
