//! `tide`.

fn main() {}
