//! Each file in `messages/` has one typical mistake. The file beside it, with the ending
//! `stderr`, has the compiler's answer, whose first lines must say what to write. After a change,
//! `TRYBUILD=overwrite cargo test -p compiler-messages` writes the answers anew; read them.

#[test]
fn a_mistake_gets_a_message_that_says_what_to_write() {
    trybuild::TestCases::new().compile_fail("tests/messages/*.rs");
}
