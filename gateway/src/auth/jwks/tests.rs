//! Sets and keys, held to RFC 7515, 7517, 7518 and 8037. Each row names the section that it comes from.

use serde_json::json;

use super::super::jws;
use super::*;

/// RFC 7517, A.1.
const SET: &str = r#"{"keys":[
    {"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
     "y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM","use":"enc","kid":"1"},
    {"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
     "e":"AQAB","alg":"RS256","kid":"2011-04-29"}]}"#;

/// RFC 7515, A.2.
const RSA_N: &str = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ";
const RSA_TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";

/// RFC 7515, A.3.
const EC_X: &str = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU";
const EC_Y: &str = "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0";
const EC_TOKEN: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";

/// RFC 8037, A.2 and A.4. What it signs is no JSON.
const ED_X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
const ED_TOKEN: &str = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";

fn rsa_key() -> Value {
    json!({ "kty": "RSA", "n": RSA_N, "e": "AQAB" })
}

fn ec_key() -> Value {
    json!({ "kty": "EC", "crv": "P-256", "x": EC_X, "y": EC_Y })
}

fn ed_key() -> Value {
    json!({ "kty": "OKP", "crv": "Ed25519", "x": ED_X })
}

/// A key with further members.
fn with(mut key: Value, more: &Value) -> Value {
    key.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    key
}

/// Checks a token's form, header and signature, and reads its claims.
fn open(token: &str, set: &KeySet) -> Result<Members, AuthError> {
    let envelope = jws::Envelope::open(token, set)?;
    envelope.check_signature()?;
    envelope.claims()
}

fn parse(keys: &[Value]) -> Result<KeySet, KeySetError> {
    KeySet::parse(json!({ "keys": keys }).to_string().as_bytes())
}

fn refusal(json: &str) -> String {
    KeySet::parse(json.as_bytes()).map(|_| ()).unwrap_err().to_string()
}

/// Why a key is not used; `None`: it is.
fn unfit(key: &Value) -> Option<Unfit> {
    read_key(key).map(|_| ()).err()
}

fn find(set: &KeySet, algorithm: &str, kid: Option<&str>) -> Result<Algorithm, AuthError> {
    set.find(algorithm, kid).map(|key| key.algorithm)
}

#[test]
fn the_rfcs_keys_verify_the_rfcs_signatures() {
    let set = parse(&[rsa_key(), ec_key(), ed_key()]).unwrap();
    assert_eq!(set.skipped(), []);
    // A changed payload: the first of its characters is another one.
    let forged = |token: &str| {
        let (header, rest) = token.split_once('.').unwrap();
        format!("{header}.f{}", &rest[1..])
    };
    for token in [RSA_TOKEN, EC_TOKEN] {
        assert_eq!(open(token, &set).unwrap()["iss"], "joe");
        assert_eq!(open(&forged(token), &set), Err(AuthError::Signature), "{token}");
    }
    assert_eq!(open(ED_TOKEN, &set), Err(AuthError::Malformed), "it is signed, and no claims");
    assert_eq!(open(&forged(ED_TOKEN), &set), Err(AuthError::Signature));
}

#[test]
fn of_the_rfcs_set_the_key_for_signatures_is_used() {
    let set = KeySet::parse(SET.as_bytes()).unwrap();
    assert_eq!(set.names(), [r#""2011-04-29" (RS256)"#]);
    assert_eq!(set.skipped(), [Skipped { name: "\"1\"".into(), why: Unfit::OtherUse }]);
    assert_eq!(find(&set, "RS256", Some("2011-04-29")), Ok(Algorithm::RS256));
    assert_eq!(find(&set, "ES256", Some("1")), Err(AuthError::UnknownKey));
}

#[test]
fn keys_that_verify_no_tokens_are_recognised() {
    let off_curve = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE";
    let rows: &[(&str, Value, Option<Unfit>)] = &[
        ("7517 4.2", with(rsa_key(), &json!({ "use": "sig" })), None),
        ("7517 4.2", with(rsa_key(), &json!({ "use": "enc" })), Some(Unfit::OtherUse)),
        ("7517 4.2, type", with(rsa_key(), &json!({ "use": 1 })), Some(Unfit::Malformed)),
        ("7517 4.3", with(ec_key(), &json!({ "key_ops": ["verify"] })), None),
        ("7517 4.3", with(ec_key(), &json!({ "key_ops": ["sign"] })), Some(Unfit::OtherUse)),
        ("7517 4.3", with(ec_key(), &json!({ "key_ops": [] })), Some(Unfit::OtherUse)),
        ("7517 4.4", with(rsa_key(), &json!({ "alg": "RS256" })), None),
        ("7517 4.4", with(rsa_key(), &json!({ "alg": "RS512" })), Some(Unfit::Algorithm)),
        ("7517 4.4", with(rsa_key(), &json!({ "alg": "PS256" })), Some(Unfit::Algorithm)),
        ("7517 4.4", with(rsa_key(), &json!({ "alg": "HS256" })), Some(Unfit::Algorithm)),
        ("7517 4.4", with(rsa_key(), &json!({ "alg": "RSA-OAEP" })), Some(Unfit::Algorithm)),
        ("7517 4.4", with(ed_key(), &json!({ "alg": "ES256" })), Some(Unfit::Algorithm)),
        ("7517 4.4, case", with(ec_key(), &json!({ "alg": "es256" })), Some(Unfit::Algorithm)),
        ("7517 4.5, type", with(ec_key(), &json!({ "kid": 7 })), Some(Unfit::Malformed)),
        ("7517 4, unknown members", with(ec_key(), &json!({ "x5c": ["MIIC"], "y2": 1 })), None),
        ("7517 4.1, missing", json!({ "n": RSA_N, "e": "AQAB" }), Some(Unfit::Malformed)),
        ("7517 4.1, unknown", json!({ "kty": "AKP", "alg": "ML-DSA-44" }), Some(Unfit::Kind)),
        ("7517 4.1, case", with(rsa_key(), &json!({ "kty": "rsa" })), Some(Unfit::Kind)),
        ("7517 4, an object", json!("RSA"), Some(Unfit::NoObject)),
        (
            "7518 6.4",
            json!({ "kty": "oct", "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMko" }),
            Some(Unfit::Secret),
        ),
        ("7518 6.2.2", with(ec_key(), &json!({ "d": "x" })), Some(Unfit::Private)),
        ("7518 6.3.2", with(rsa_key(), &json!({ "d": "x" })), Some(Unfit::Private)),
        ("8037 2", with(ed_key(), &json!({ "d": "x" })), Some(Unfit::Private)),
        ("7518 6.2.1.1", with(ec_key(), &json!({ "crv": "P-384" })), Some(Unfit::Kind)),
        ("8037 3.1", with(ed_key(), &json!({ "crv": "Ed448" })), Some(Unfit::Kind)),
        ("8037 3.2", with(ed_key(), &json!({ "crv": "X25519" })), Some(Unfit::Kind)),
        ("7518 6.2.1.2, length", with(ec_key(), &json!({ "x": "AQAB" })), Some(Unfit::Malformed)),
        ("7518 6.2.1.2, curve", with(ec_key(), &json!({ "x": off_curve })), Some(Unfit::Invalid)),
        ("8037 2, length", with(ed_key(), &json!({ "x": "AQAB" })), Some(Unfit::Malformed)),
        ("7518 6.3.1, missing", json!({ "kty": "RSA", "e": "AQAB" }), Some(Unfit::Malformed)),
        ("7518 2, padding", with(rsa_key(), &json!({ "e": "AQAB==" })), Some(Unfit::Malformed)),
        ("7518 6.3.1.2, even", with(rsa_key(), &json!({ "e": "AQAA" })), Some(Unfit::Invalid)),
        ("7518 6.3.1.2, one", with(rsa_key(), &json!({ "e": "AQ" })), Some(Unfit::Invalid)),
        ("7518 6.3.1.2, long", with(rsa_key(), &json!({ "e": "AQAAAAAB" })), Some(Unfit::Invalid)),
        ("7518 6.3.1, empty", with(rsa_key(), &json!({ "n": "" })), Some(Unfit::Short(0))),
    ];
    for (section, key, expected) in rows {
        assert_eq!(unfit(key), *expected, "{section}: {key}");
    }
}

#[test]
fn an_rsa_key_that_can_be_broken_is_refused_by_name() {
    let modulus = |bits: usize| {
        let mut bytes = vec![0xff; bits.div_ceil(8)];
        bytes[0] >>= 8 * bytes.len() - bits;
        // Zeros before it count for nothing.
        URL_SAFE_NO_PAD.encode([vec![0, 0], bytes].concat())
    };
    for (bits, expected) in [
        (2047, Some(Unfit::Short(2047))),
        (2048, None),
        (4096, None),
        (4097, Some(Unfit::Long(4097))),
    ] {
        assert_eq!(unfit(&with(rsa_key(), &json!({ "n": modulus(bits) }))), expected, "{bits}");
    }
    let short = with(rsa_key(), &json!({ "kid": "old", "n": modulus(1024) }));
    let error = parse(std::slice::from_ref(&short)).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("the key \"old\" has 1024 bits") && error.contains("2048"), "{error}");
    assert_eq!(parse(&[short, ed_key()]).unwrap().len(), 1, "it costs the others nothing");
}

#[test]
fn a_key_is_found_by_its_kid_and_verifies_its_own_algorithm_alone() {
    let named = |key: Value, kid: &str| with(key, &json!({ "kid": kid }));
    let set = parse(&[
        named(rsa_key(), "a"),
        named(ec_key(), "b"),
        named(ed_key(), "b"),
        named(ed_key(), "b"),
        ed_key(),
    ]);
    let set = set.unwrap();
    assert_eq!(set.skipped(), [Skipped { name: "\"b\"".into(), why: Unfit::Duplicate }]);
    for (algorithm, kid, expected) in [
        ("RS256", Some("a"), Ok(Algorithm::RS256)),
        ("ES256", Some("b"), Ok(Algorithm::ES256)),
        ("EdDSA", Some("b"), Ok(Algorithm::EdDSA)),
        // The algorithm is the key's: RFC 8725, 3.1.
        ("HS256", Some("a"), Err(AuthError::Signature)),
        ("none", Some("a"), Err(AuthError::Signature)),
        ("RS512", Some("a"), Err(AuthError::Signature)),
        ("ES256", Some("a"), Err(AuthError::Signature)),
        ("RS256", Some("b"), Err(AuthError::Signature)),
        ("RS256", Some("A"), Err(AuthError::UnknownKey)),
        ("RS256", Some(""), Err(AuthError::UnknownKey)),
        // Without a kid: one key has the algorithm, several have it, none has it.
        ("RS256", None, Ok(Algorithm::RS256)),
        ("EdDSA", None, Err(AuthError::UnknownKey)),
        ("HS256", None, Err(AuthError::UnknownKey)),
        ("", None, Err(AuthError::UnknownKey)),
    ] {
        assert_eq!(find(&set, algorithm, kid), expected, "{algorithm} {kid:?}");
    }
}

#[test]
fn a_set_has_bounds() {
    let many = |count: usize| vec![ed_key(); count];
    assert_eq!(parse(&many(KEYS_MAX)).unwrap().len(), KEYS_MAX);
    let error = parse(&many(KEYS_MAX + 1)).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("65 keys") && error.contains("64"), "{error}");
    let set = json!({ "keys": [ed_key()] }).to_string();
    let spaces = |count: usize| format!("{set}{}", " ".repeat(count));
    let left = usize::try_from(SET_BYTES_MAX).unwrap() - set.len();
    assert!(KeySet::parse(spaces(left).as_bytes()).is_ok());
    assert!(refusal(&spaces(left + 1)).contains("256 KiB"));
}

#[test]
fn an_invalid_set_is_refused_as_a_whole() {
    for (json, hint) in [
        ("", "not a JSON Web Key Set"),
        ("<html>", "not a JSON Web Key Set"),
        ("[]", "not a JSON Web Key Set"),
        ("{}", "no list \"keys\""),
        (r#"{"keys":{}}"#, "no list \"keys\""),
        (r#"{"keys":[]}"#, "no key that verifies tokens"),
        (r#"{"keys":[],"keys":[]}"#, "twice"),
        (r#"{"keys":[{"kty":"oct","kid":"s","k":"AA"}]}"#, "the key \"s\" is a secret"),
        (r#"{"keys":[7]}"#, "the key keys[0] is no JSON object"),
    ] {
        assert!(refusal(json).contains(hint), "{json}: {}", refusal(json));
    }
    let hostile = json!({ "keys": [{ "kty": "x", "kid": format!("\n{}", "x".repeat(1000)) }] });
    let error = refusal(&hostile.to_string());
    assert!(error.len() < 400 && error.contains("\"\\nxxx") && !error.contains('\n'), "{error}");
}

#[test]
fn a_key_is_the_same_whatever_its_name_and_another_key_is_not() {
    let set = parse(&[with(ed_key(), &json!({ "kid": "a" })), ec_key()]).unwrap();
    let renamed = parse(&[with(ed_key(), &json!({ "kid": "b" }))]).unwrap();
    let other = parse(&[rsa_key()]).unwrap();
    let key = set.find("EdDSA", Some("a")).unwrap();
    assert!(set.contains(key) && renamed.contains(key) && !other.contains(key));
}
