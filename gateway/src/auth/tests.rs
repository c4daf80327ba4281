//! The verifier with one key, and with demo tokens.

use std::fs;

use jsonwebtoken::{EncodingKey, Header, encode, get_current_timestamp};
use serde_json::{Value, json};

use super::*;

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const RSA_PUBLIC: &[u8] = include_bytes!("../../testdata/rs256.public.pem");
const RSA_PRIVATE: &[u8] = include_bytes!("../../testdata/rs256.private.pem");
const ED_PUBLIC: &[u8] = include_bytes!("../../testdata/eddsa.public.pem");
const ED_PRIVATE: &[u8] = include_bytes!("../../testdata/eddsa.private.pem");

impl Verifier {
    /// Whether a token proves a user, with the check of its signature on this thread.
    pub(super) fn verify(
        &self,
        user_id: UserId,
        token: &str,
        unix_ms: u64,
    ) -> Result<TokenEnd, AuthError> {
        match self.begin(user_id, token, unix_ms) {
            Verification::Ended(verified) => verified,
            Verification::Redis(_) => Err(AuthError::RedisUnavailable),
            Verification::Signature(check) => {
                let signed = self.signatures().unwrap().verify(&check);
                self.finish(&check, signed, unix_ms)
            }
        }
    }

    /// Whether a token proves a user now.
    pub(super) fn verify_now(&self, user_id: UserId, token: &str) -> Result<(), AuthError> {
        self.verify(user_id, token, 1_000 * get_current_timestamp()).map(drop)
    }
}

fn config(mode: AuthMode) -> AuthConfig {
    AuthConfig {
        mode,
        jwks_refresh: Duration::from_secs(300),
        leeway: Duration::from_secs(5),
        timeout: Duration::from_secs(10),
        failures_max: 3,
        lookups_max: 10,
        verify_threads: 1,
        verifications_max: 10,
        verified_tokens_max: 100,
        recheck: Duration::from_secs(300),
    }
}

fn try_jwt(
    algorithm: JwtAlgorithm,
    key: &[u8],
    audience: Option<&str>,
) -> Result<Verifier, KeyError> {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let key_file = folder.path().join("key");
    fs::write(&key_file, key).unwrap();
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).unwrap();
    let audience = audience.map(str::to_owned);
    let keys = JwtKeys::One { algorithm, key_file };
    Verifier::new(&config(AuthMode::Jwt { keys, audience, issuer: None }))
}

fn jwt(algorithm: JwtAlgorithm, key: &[u8]) -> Verifier {
    try_jwt(algorithm, key, None).unwrap()
}

fn in_an_hour() -> u64 {
    get_current_timestamp() + 3600
}

fn sign(algorithm: Algorithm, key: &EncodingKey, claims: &Value) -> String {
    encode(&Header::new(algorithm), claims, key).unwrap()
}

fn hs256(claims: &Value) -> String {
    sign(Algorithm::HS256, &EncodingKey::from_secret(SECRET.as_bytes()), claims)
}

#[test]
fn each_algorithm_takes_its_own_tokens_and_no_others() {
    let claims = json!({ "sub": "7", "exp": in_an_hour() });
    let rsa = EncodingKey::from_rsa_pem(RSA_PRIVATE).unwrap();
    let ed = EncodingKey::from_ed_pem(ED_PRIVATE).unwrap();
    let tokens = [
        hs256(&claims),
        sign(Algorithm::RS256, &rsa, &claims),
        sign(Algorithm::EdDSA, &ed, &claims),
    ];
    let verifiers = [
        jwt(JwtAlgorithm::Hs256, SECRET.as_bytes()),
        jwt(JwtAlgorithm::Rs256, RSA_PUBLIC),
        jwt(JwtAlgorithm::EdDsa, ED_PUBLIC),
    ];
    for (index, verifier) in verifiers.iter().enumerate() {
        for (other, token) in tokens.iter().enumerate() {
            let expected = if index == other { Ok(()) } else { Err(AuthError::Signature) };
            assert_eq!(verifier.verify_now(7, token), expected, "{index} {other}");
        }
    }
}

#[test]
fn a_key_that_is_replaced_proves_nothing_also_where_its_check_is_under_way() {
    let folder = tempfile::tempdir().unwrap();
    let key_file = folder.path().join("key");
    let with = |audience: Option<&str>| {
        let keys = JwtKeys::One { algorithm: JwtAlgorithm::EdDsa, key_file: key_file.clone() };
        let audience = audience.map(str::to_owned);
        config(AuthMode::Jwt { keys, audience, issuer: None })
    };
    fs::write(&key_file, ED_PUBLIC).unwrap();
    let settings = with(None);
    let first = Arc::new(Verifier::new(&settings).unwrap());
    let claims = json!({ "sub": "7", "exp": in_an_hour() });
    let token = sign(Algorithm::EdDSA, &EncodingKey::from_ed_pem(ED_PRIVATE).unwrap(), &claims);
    let unix_ms = 1_000 * get_current_timestamp();
    assert_eq!(first.verify_now(7, &token), Ok(()));
    let same = first.renew(&settings, &settings).unwrap();
    assert!(Arc::ptr_eq(&same.verifier, &first) && same.changed_file.is_none());

    // What else a token needs may change, and what was verified is still remembered.
    let other = first.renew(&settings, &with(Some("game"))).unwrap().verifier;
    assert_eq!(other.verify_now(7, &token), Err(AuthError::Audience));
    let under_way = {
        let token = sign(
            Algorithm::EdDSA,
            &EncodingKey::from_ed_pem(ED_PRIVATE).unwrap(),
            &json!({ "sub": "8", "exp": in_an_hour() }),
        );
        match first.begin(8, &token, unix_ms) {
            Verification::Signature(check) => check,
            other => panic!("{other:?}"),
        }
    };
    assert!(first.finish(&under_way, Ok(()), unix_ms).is_ok());
    assert_eq!(other.finish(&under_way, Ok(()), unix_ms), Err(AuthError::Audience));
    let with_leeway = AuthConfig { leeway: Duration::from_secs(9), ..settings.clone() };
    let lenient = first.renew(&settings, &with_leeway).unwrap().verifier;
    assert!(lenient.finish(&under_way, Ok(()), unix_ms).is_ok());

    // Another key in the same file.
    fs::write(&key_file, other_ed_key()).unwrap();
    let second = first.renew(&settings, &settings).unwrap();
    assert_eq!(second.changed_file, Some("auth.key_file"));
    let second = second.verifier;
    assert_eq!(second.verify_now(7, &token), Err(AuthError::Signature), "it was remembered");
    assert_eq!(second.finish(&under_way, Ok(()), unix_ms), Err(AuthError::UnknownKey));
    assert!(Arc::ptr_eq(first.pool().unwrap(), second.pool().unwrap()));

    fs::remove_file(&key_file).unwrap();
    assert!(second.renew(&settings, &settings).is_err());
}

#[test]
fn another_interval_keeps_the_key_set() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    // The public key of RFC 8037, A.2.
    let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    let set = json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "x": x }] });
    fs::write(&file, set.to_string()).unwrap();
    let keys = JwtKeys::Set(KeySetSource::File(file));
    let settings = config(AuthMode::Jwt { keys, audience: None, issuer: None });
    let verifier = Arc::new(Verifier::new(&settings).unwrap());
    let often = AuthConfig { jwks_refresh: Duration::from_secs(10), ..settings.clone() };
    let renewed = verifier.renew(&settings, &often).unwrap();
    assert!(Arc::ptr_eq(&renewed.verifier, &verifier) && renewed.changed_file.is_none());
}

/// The public key of RFC 8037, A.2, in PEM.
fn other_ed_key() -> String {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    let x = URL_SAFE_NO_PAD.decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo").unwrap();
    // RFC 8410, 4: the algorithm's name before the 32 bytes.
    let prefix = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    let der = STANDARD.encode([&prefix[..], &x].concat());
    format!("-----BEGIN PUBLIC KEY-----\n{der}\n-----END PUBLIC KEY-----\n")
}

#[test]
fn an_rsa_key_that_can_be_broken_is_refused() {
    let short = include_bytes!("../../testdata/rs256.short.public.pem");
    let error = try_jwt(JwtAlgorithm::Rs256, short, None).unwrap_err().to_string();
    assert!(error.contains("1024 bits") && error.contains("2048"), "{error}");
}

#[test]
fn a_public_key_is_no_secret() {
    let claims = json!({ "sub": "7", "exp": in_an_hour() });
    for public in [RSA_PUBLIC, RSA_PUBLIC.trim_ascii()] {
        let forged = sign(Algorithm::HS256, &EncodingKey::from_secret(public), &claims);
        let verifier = jwt(JwtAlgorithm::Rs256, RSA_PUBLIC);
        assert_eq!(verifier.verify_now(7, &forged), Err(AuthError::Signature));
    }
}

#[test]
fn unsigned_and_changed_tokens_fail() {
    let verifier = jwt(JwtAlgorithm::Hs256, SECRET.as_bytes());
    let token = hs256(&json!({ "sub": "7", "exp": in_an_hour() }));
    let parts: Vec<&str> = token.split('.').collect();
    let [header, claims, signature] = parts[..] else { panic!("a token has three parts") };
    // {"alg":"none","typ":"JWT"}
    let none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0";
    let other = hs256(&json!({ "sub": "8", "exp": in_an_hour() }));
    let other_claims = other.split('.').nth(1).unwrap();
    for (forged, error) in [
        (format!("{none}.{claims}."), AuthError::Signature),
        (format!("{none}.{claims}.{signature}"), AuthError::Signature),
        (format!("{header}.{claims}."), AuthError::Signature),
        (format!("{header}.{other_claims}.{signature}"), AuthError::Signature),
        (format!("{header}.{claims}"), AuthError::Malformed),
        (String::new(), AuthError::Malformed),
        ("a".repeat(TOKEN_BYTES_MAX + 1), AuthError::Malformed),
    ] {
        assert_eq!(verifier.verify_now(7, &forged), Err(error), "{forged}");
        assert_eq!(verifier.verify_now(8, &forged), Err(error), "{forged}");
    }
    assert_eq!(verifier.verify_now(7, &token), Ok(()));
    let other_secret = jwt(JwtAlgorithm::Hs256, SECRET.replace('0', "1").as_bytes());
    assert_eq!(other_secret.verify_now(7, &token), Err(AuthError::Signature));
}

#[test]
fn claims_are_demanded_and_honoured() {
    let verifier = jwt(JwtAlgorithm::Hs256, SECRET.as_bytes());
    let (now, later) = (get_current_timestamp(), in_an_hour());
    for (claims, expected) in [
        (json!({ "sub": "7", "exp": later }), Ok(())),
        (json!({ "sub": "7", "exp": now - 1 }), Ok(())),
        (json!({ "sub": "7", "exp": now - 60 }), Err(AuthError::Expired)),
        (json!({ "sub": "7", "exp": later, "nbf": now + 60 }), Err(AuthError::Expired)),
        (json!({ "sub": "7" }), Err(AuthError::Malformed)),
        (json!({ "sub": "7", "exp": "soon" }), Err(AuthError::Malformed)),
        (json!({ "exp": later }), Err(AuthError::Malformed)),
        (json!({ "sub": 7, "exp": later }), Err(AuthError::Malformed)),
        (json!({ "sub": "8", "exp": later }), Err(AuthError::WrongUser)),
        (json!({ "sub": "07", "exp": later }), Err(AuthError::WrongUser)),
        (json!({ "sub": "+7", "exp": later }), Err(AuthError::WrongUser)),
        (json!({ "sub": "", "exp": later }), Err(AuthError::WrongUser)),
        (json!({ "sub": "7", "exp": later, "aud": "shop" }), Err(AuthError::Audience)),
    ] {
        assert_eq!(verifier.verify_now(7, &hs256(&claims)), expected, "{claims}");
    }
    let most = json!({ "sub": u64::MAX.to_string(), "exp": later });
    assert_eq!(verifier.verify_now(u64::MAX, &hs256(&most)), Ok(()));

    let shop = try_jwt(JwtAlgorithm::Hs256, SECRET.as_bytes(), Some("shop")).unwrap();
    for (claims, expected) in [
        (json!({ "sub": "7", "exp": later, "aud": ["shop", "x"] }), Ok(())),
        (json!({ "sub": "7", "exp": later, "aud": "bank" }), Err(AuthError::Audience)),
        (json!({ "sub": "7", "exp": later }), Err(AuthError::Audience)),
    ] {
        assert_eq!(shop.verify_now(7, &hs256(&claims)), expected, "{claims}");
    }
}

#[test]
fn a_token_says_when_it_ends_and_counts_until_then_and_the_leeway() {
    let verifier = jwt(JwtAlgorithm::Hs256, SECRET.as_bytes());
    let verify = |exp: Value, unix_ms| {
        verifier.verify(7, &hs256(&json!({ "sub": "7", "exp": exp })), unix_ms)
    };
    let end = |unix_ms| Ok(TokenEnd::At { unix_ms });
    assert_eq!(verify(json!(2_000_000_000), 0), end(2_000_000_000_000));
    assert_eq!(verify(json!(2_000_000_000), 2_000_000_004_999), end(2_000_000_000_000));
    assert_eq!(verify(json!(2_000_000_000), 2_000_000_005_000), Err(AuthError::Expired));
    assert_eq!(verify(json!(2_000_000_000.25), 0), end(2_000_000_000_250));
    assert_eq!(verify(json!(1e300), 0), end(u64::MAX));
    let demo = Verifier::new(&config(AuthMode::Demo)).unwrap();
    assert_eq!(demo.verify(7, "token-7", 0), Ok(TokenEnd::Never));
}

#[test]
fn demo_tokens_name_their_user() {
    let verifier = Verifier::new(&config(AuthMode::Demo)).unwrap();
    assert_eq!(verifier.verify_now(7, "token-7"), Ok(()));
    assert_eq!(verifier.verify_now(7, "token-8"), Err(AuthError::WrongUser));
    assert_eq!(verifier.verify_now(7, "token-07"), Err(AuthError::WrongUser));
    assert_eq!(verifier.verify_now(7, "7"), Err(AuthError::Malformed));
}

#[test]
fn a_file_without_the_key_says_how_to_make_it() {
    for (algorithm, key) in [
        (JwtAlgorithm::Rs256, SECRET.as_bytes()),
        (JwtAlgorithm::Rs256, RSA_PRIVATE),
        (JwtAlgorithm::Rs256, ED_PUBLIC),
        (JwtAlgorithm::EdDsa, RSA_PUBLIC),
    ] {
        let error = try_jwt(algorithm, key, None).unwrap_err().to_string();
        assert!(error.contains("openssl pkey"), "{error}");
    }
}

#[test]
fn a_token_in_redis_is_looked_up_by_its_digest_if_it_can_be_one() {
    let verifier = Verifier::new(&config(AuthMode::Redis)).unwrap();
    let begin = |token: &str| match verifier.begin(7, token, 0) {
        Verification::Redis(digest) => Ok(digest),
        Verification::Ended(Err(error)) => Err(error),
        other => panic!("{other:?}"),
    };
    assert_eq!(begin("a"), Ok(TokenDigest::of("a")));
    let longest = "a".repeat(TOKEN_BYTES_MAX);
    assert_eq!(begin(&longest), Ok(TokenDigest::of(&longest)));
    for wrong in [String::new(), longest + "a"] {
        assert_eq!(begin(&wrong), Err(AuthError::Malformed));
    }
}

/// The signature, as somebody would forge it who knows how long it has to be.
fn forged(token: &str) -> String {
    let (message, signature) = token.rsplit_once('.').unwrap();
    let first = if signature.starts_with('A') { "B" } else { "A" };
    format!("{message}.{first}{}", &signature[1..])
}

#[test]
fn a_token_that_is_refused_for_another_reason_has_no_signature_checked() {
    let audience = Some("shop");
    let verifier = try_jwt(JwtAlgorithm::Rs256, RSA_PUBLIC, audience).unwrap();
    let key = EncodingKey::from_rsa_pem(RSA_PRIVATE).unwrap();
    let (now, later) = (get_current_timestamp(), in_an_hour());
    let rows = [
        (json!({ "sub": "7", "exp": later, "aud": "shop" }), None),
        (json!({ "sub": "8", "exp": later, "aud": "shop" }), Some(AuthError::WrongUser)),
        (json!({ "sub": "7", "exp": now - 60, "aud": "shop" }), Some(AuthError::Expired)),
        (json!({ "sub": "7", "exp": later, "aud": "bank" }), Some(AuthError::Audience)),
        (json!({ "sub": "7", "exp": later }), Some(AuthError::Audience)),
        (json!({ "sub": 7, "exp": later, "aud": "shop" }), Some(AuthError::Malformed)),
    ];
    for (claims, expected) in rows {
        let token = sign(Algorithm::RS256, &key, &claims);
        let (message, _) = token.rsplit_once('.').unwrap();
        let short = verifier.begin(7, &format!("{message}.AAAA"), 1_000 * now);
        assert!(matches!(short, Verification::Ended(Err(AuthError::Signature))), "{claims}");
        for token in [&token, &forged(&token)] {
            let refused = match verifier.begin(7, token, 1_000 * now) {
                Verification::Ended(verified) => verified.err(),
                Verification::Signature(_) => None,
                other => panic!("{other:?}"),
            };
            assert_eq!(refused, expected, "{claims}");
        }
    }
}

#[test]
fn a_wrong_audience_looks_to_clients_like_a_wrong_signature() {
    let text = AuthError::Signature.text_for_client();
    assert_eq!(AuthError::Audience.text_for_client(), text);
    assert_eq!(AuthError::Expired.text_for_client(), AuthError::Expired.to_string());
}

#[test]
fn a_token_that_was_verified_is_not_verified_again_until_it_expires() {
    let verifier = jwt(JwtAlgorithm::EdDsa, ED_PUBLIC);
    let key = EncodingKey::from_ed_pem(ED_PRIVATE).unwrap();
    let token = sign(Algorithm::EdDSA, &key, &json!({ "sub": "7", "exp": 2_000_000_000 }));
    let costs = |token: &str, unix_ms| match verifier.begin(7, token, unix_ms) {
        Verification::Signature(check) => Some(check),
        _ => None,
    };
    let check = costs(&token, 0).unwrap();
    assert_eq!(verifier.finish(&check, Err(AuthError::Signature), 0), Err(AuthError::Signature));
    assert!(costs(&token, 0).is_some(), "only a success is remembered");
    let signed = verifier.signatures().unwrap().verify(&check);
    let late = 2_000_000_005_000;
    assert_eq!(verifier.finish(&check, signed, late), Err(AuthError::Expired));
    let end = Ok(TokenEnd::At { unix_ms: 2_000_000_000_000 });
    assert_eq!(verifier.finish(&check, signed, 0), end);
    assert!(
        matches!(verifier.begin(7, &token, 0), Verification::Ended(verified) if verified == end)
    );
    assert_eq!(verifier.verify(8, &token, 0), Err(AuthError::WrongUser));
    assert_eq!(verifier.verify(7, &token, late), Err(AuthError::Expired));
    let forged = forged(&token);
    assert!(costs(&forged, 0).is_some(), "another signature is another token");
    assert_eq!(verifier.verify(7, &forged, 0), Err(AuthError::Signature));
}

#[test]
fn errors_of_the_gateway_are_distinguished_from_those_of_tokens() {
    let own = AuthError::ALL.into_iter().filter(|error| error.is_unknowable());
    let labels: Vec<_> = own.map(AuthError::label).collect();
    assert_eq!(labels, ["no_keys", "redis_unavailable", "too_many_verifications"]);
    for (index, error) in AuthError::ALL.into_iter().enumerate() {
        assert_eq!(error as usize, index, "counters are found by it");
    }
}
