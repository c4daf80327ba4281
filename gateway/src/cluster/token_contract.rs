//! The part of the contract that is about tokens: names, commands, and how messages and answers are read.

use redis::{Cmd, Value};
use tidegate_backend::UserId;

use crate::auth::TokenDigest;
use crate::shard::tokens::Verdict;

/// The number of partitions into which users are split. All tokens of a partition are in one slot.
pub const PARTITIONS: u8 = 128;

/// The partition of a user's tokens.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "the remainder is below 128")]
pub const fn partition_of(user_id: UserId) -> u8 {
    (user_id % PARTITIONS as u64) as u8
}

/// The key of a partition's tokens, which is also the channel of its revocations.
#[must_use]
pub fn tokens_key(partition: u8) -> String {
    format!("tg1:tokens:{{u{partition}}}")
}

/// The partition that a channel of revocations belongs to.
#[must_use]
pub fn partition_of_channel(channel: &[u8]) -> Option<u8> {
    let channel = std::str::from_utf8(channel).ok()?;
    let partition = channel.strip_prefix("tg1:tokens:{u")?.strip_suffix('}')?.parse().ok()?;
    (partition < PARTITIONS).then_some(partition)
}

/// Reads a message of a channel of revocations: the user, a line feed, and the token's digest or `*` for any.
#[must_use]
pub fn revocation(message: &[u8]) -> Option<(UserId, Option<TokenDigest>)> {
    let end = message.iter().position(|&byte| byte == b'\n')?;
    let user_id = std::str::from_utf8(&message[..end]).ok()?.parse().ok()?;
    match &message[end + 1..] {
        b"*" => Some((user_id, None)),
        digits => Some((user_id, Some(TokenDigest::from_hex(digits)?))),
    }
}

/// `tidegate_tokens`: whether Redis holds these tokens, which are all of one partition.
#[must_use]
pub fn tokens(partition: u8, tokens: impl ExactSizeIterator<Item = (UserId, TokenDigest)>) -> Cmd {
    let mut cmd = redis::cmd("FCALL");
    cmd.arg("tidegate_tokens").arg(1).arg(tokens_key(partition)).arg(tokens.len());
    for (user_id, token) in tokens {
        cmd.arg(user_id).arg(token.to_string());
    }
    cmd
}

/// Reads the answer of `tidegate_tokens`: for each token -2, or -1 where it has no end, or milliseconds until its end.
#[must_use]
pub fn verdicts(answer: &Value) -> Option<Vec<Verdict>> {
    let Value::Array(answers) = answer else { return None };
    let verdict = |answer: &Value| match answer {
        Value::Int(-2) => Some(Verdict::Unknown),
        Value::Int(-1) => Some(Verdict::Known { ends_in_ms: None }),
        Value::Int(ms) => Some(Verdict::Known { ends_in_ms: Some(u64::try_from(*ms).ok()?) }),
        _ => None,
    };
    answers.iter().map(verdict).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revocation_names_a_user_and_a_digest_or_all() {
        let token = TokenDigest::of("a");
        let message = format!("7\n{token}");
        assert_eq!(revocation(message.as_bytes()), Some((7, Some(token))));
        assert_eq!(revocation(b"18446744073709551615\n*"), Some((u64::MAX, None)));
        for wrong in ["", "7", "7\n", "x\n*", "7\n**", "7\ntoken", "-7\n*"] {
            assert_eq!(revocation(wrong.as_bytes()), None, "{wrong:?}");
        }
    }

    #[test]
    fn channels_and_keys_are_those_of_the_partition() {
        assert_eq!(tokens_key(partition_of(u64::MAX)), "tg1:tokens:{u127}");
        for partition in [0, 127] {
            let channel = tokens_key(partition);
            assert_eq!(partition_of_channel(channel.as_bytes()), Some(partition));
        }
        for wrong in ["tg1:tokens:{u128}", "tg1:tokens:{u7}:7", "tg1:room:{r7}", "tg1:tokens:{u}"] {
            assert_eq!(partition_of_channel(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn an_answer_says_of_each_token_when_it_ends() {
        let answer = Value::Array([-2, -1, 0, 5].map(Value::Int).to_vec());
        let known = |ends_in_ms| Verdict::Known { ends_in_ms };
        let expected = vec![Verdict::Unknown, known(None), known(Some(0)), known(Some(5))];
        assert_eq!(verdicts(&answer), Some(expected));
        assert_eq!(verdicts(&Value::Array(vec![Value::Int(-3)])), None);
        assert_eq!(verdicts(&Value::Nil), None);
    }
}
