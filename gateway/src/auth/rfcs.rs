//! The verifier, held to RFC 7515 (JWS), 7518 (JWA), 7519 (JWT), 7797 (b64) and 8725 (best practices).
//!
//! Each row names the section that it comes from.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, crypto};

use super::AuthError::{Audience, Expired, Malformed, Signature};
use super::claims::Demands;
use super::*;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;
/// 2100-01-01.
const LATER: &str = "4102444800";

type Outcome = Result<(), AuthError>;

fn verifier(audience: Option<&str>, issuer: Option<&str>) -> Verifier {
    let demands = Demands {
        audience: audience.map(str::to_owned),
        issuer: issuer.map(str::to_owned),
        leeway_s: 5.0,
    };
    let key = DecodingKey::from_secret(SECRET);
    let keys = Keys::One(Arc::new(Key::new(key, Algorithm::HS256, &[SECRET])));
    Verifier { method: Method::Jwt(Jwt { keys, demands: demands.into(), pool: None }) }
}

/// Signs whatever it is given, as a good issuer would not.
fn sign(header: &[u8], claims: &[u8]) -> String {
    sign_parts(&URL_SAFE_NO_PAD.encode(header), &URL_SAFE_NO_PAD.encode(claims))
}

fn sign_parts(header: &str, claims: &str) -> String {
    let message = format!("{header}.{claims}");
    let key = EncodingKey::from_secret(SECRET);
    let signature = crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
    format!("{message}.{signature}")
}

fn good_claims() -> String {
    format!(r#"{{"sub":"7","exp":{LATER}}}"#)
}

#[track_caller]
fn check(section: &str, verifier: &Verifier, token: &str, expected: Outcome) {
    assert_eq!(verifier.verify_now(7, token), expected, "{section}: {token}");
}

#[test]
fn headers() {
    let verifier = verifier(None, None);
    let rows: &[(&str, &str, Outcome)] = &[
        ("7515 4.1.1", r#"{"alg":"HS256"}"#, Ok(())),
        ("7515 4.1.1, no alg", r#"{"typ":"JWT"}"#, Err(Malformed)),
        ("7515 4.1.1, case", r#"{"alg":"hs256"}"#, Err(Signature)),
        ("7515 4.1.1, space", r#"{"alg":"HS256 "}"#, Err(Signature)),
        ("7515 4.1.1, type", r#"{"alg":["HS256"]}"#, Err(Malformed)),
        ("7515 4.1.1, type", r#"{"alg":null}"#, Err(Malformed)),
        ("7515 4.1.1, empty", r#"{"alg":""}"#, Err(Malformed)),
        ("7515 4, escapes are the same text", r#"{"\u0061lg":"HS\u003256"}"#, Ok(())),
        ("8725 3.1, another alg", r#"{"alg":"HS512"}"#, Err(Signature)),
        ("8725 3.1, another alg", r#"{"alg":"RS256"}"#, Err(Signature)),
        ("8725 2.1, none", r#"{"alg":"none"}"#, Err(Signature)),
        ("8725 2.1, none", r#"{"alg":"nOnE"}"#, Err(Signature)),
        ("7515 4, twice", r#"{"alg":"HS256","alg":"HS256"}"#, Err(Malformed)),
        ("7515 4, twice", r#"{"alg":"none","alg":"HS256"}"#, Err(Malformed)),
        ("7515 4, twice", r#"{"alg":"HS256","kid":"a","kid":"b"}"#, Err(Malformed)),
        ("7515 4, twice when unescaped", r#"{"alg":"HS256","\u0061lg":"x"}"#, Err(Malformed)),
        ("7515 4, unknown ones are ignored", r#"{"alg":"HS256","x":{"y":[1]}}"#, Ok(())),
        ("7515 4.1.2", r#"{"alg":"HS256","jku":["x"]}"#, Err(Malformed)),
        ("7515 4.1.3", r#"{"alg":"HS256","jwk":{"kty":"oct"}}"#, Ok(())),
        ("7515 4.1.3", r#"{"alg":"HS256","jwk":"x"}"#, Err(Malformed)),
        ("7515 4.1.4", r#"{"alg":"HS256","kid":"one"}"#, Ok(())),
        ("7515 4.1.4", r#"{"alg":"HS256","kid":1}"#, Err(Malformed)),
        ("7515 4.1.5", r#"{"alg":"HS256","x5u":null}"#, Err(Malformed)),
        ("7515 4.1.6", r#"{"alg":"HS256","x5c":["MIIC"]}"#, Ok(())),
        ("7515 4.1.6", r#"{"alg":"HS256","x5c":"MIIC"}"#, Err(Malformed)),
        ("7515 4.1.7", r#"{"alg":"HS256","x5t":7}"#, Err(Malformed)),
        ("7515 4.1.8", r#"{"alg":"HS256","x5t#S256":{}}"#, Err(Malformed)),
        ("7515 4.1.11", r#"{"alg":"HS256","crit":["exp"],"exp":1}"#, Err(Malformed)),
        ("7515 4.1.11, empty", r#"{"alg":"HS256","crit":[]}"#, Err(Malformed)),
        ("7515 4.1.11, null", r#"{"alg":"HS256","crit":null}"#, Err(Malformed)),
        ("7797 6", r#"{"alg":"HS256","b64":false,"crit":["b64"]}"#, Err(Malformed)),
        ("7797 7", r#"{"alg":"HS256","b64":false}"#, Err(Malformed)),
        ("7797 3, the default", r#"{"alg":"HS256","b64":true}"#, Ok(())),
        ("7519 5.1", r#"{"alg":"HS256","typ":"jwt"}"#, Ok(())),
        ("7515 4.1.9", r#"{"alg":"HS256","typ":"application/jwt"}"#, Ok(())),
        ("9068 2.1", r#"{"alg":"HS256","typ":"at+jwt"}"#, Ok(())),
        ("8725 3.11", r#"{"alg":"HS256","typ":"logout+jwt"}"#, Err(Malformed)),
        ("8725 3.11", r#"{"alg":"HS256","typ":"secevent+jwt"}"#, Err(Malformed)),
        ("7515 4.1.9, type", r#"{"alg":"HS256","typ":7}"#, Err(Malformed)),
        ("7519 5.2, nested", r#"{"alg":"HS256","cty":"JWT"}"#, Err(Malformed)),
        ("7519 5.2, nested", r#"{"alg":"HS256","cty":"application/jwt"}"#, Err(Malformed)),
        ("7515 4.1.10, type", r#"{"alg":"HS256","cty":{}}"#, Err(Malformed)),
        ("8725 3.10, a key is not fetched", r#"{"alg":"HS256","jku":"http://[::1]/"}"#, Ok(())),
        ("7515 4.1.3, a key is not taken", r#"{"alg":"HS256","jwk":{"kty":"oct","k":""}}"#, Ok(())),
        ("7515 4, an object", r#"["HS256"]"#, Err(Malformed)),
        ("7515 4, an object", r#""HS256""#, Err(Malformed)),
        ("7515 5.2, JSON", r#"{"alg":"HS256"}x"#, Err(Malformed)),
        ("7515 5.2, JSON", r#"{"alg":"HS256",}"#, Err(Malformed)),
        ("7515 5.2, JSON", "", Err(Malformed)),
        ("7515 5.2, space in JSON", " {\"alg\" :\r\n\"HS256\"} ", Ok(())),
        ("8259 8.1, byte order mark", "\u{feff}{\"alg\":\"HS256\"}", Err(Malformed)),
    ];
    for (section, header, expected) in rows {
        let token = sign(header.as_bytes(), good_claims().as_bytes());
        check(&format!("{section}: {header}"), &verifier, &token, *expected);
    }
    let latin1 = sign(b"{\"alg\":\"HS256\",\"x\":\"\xe9\"}", good_claims().as_bytes());
    check("7515 3, UTF-8", &verifier, &latin1, Err(Malformed));
    let utf16: Vec<u8> = HEADER.encode_utf16().flat_map(u16::to_be_bytes).collect();
    check("8725 3.7, UTF-16", &verifier, &sign(&utf16, good_claims().as_bytes()), Err(Malformed));
}

#[test]
fn serializations() {
    let verifier = verifier(None, None);
    let good = sign(HEADER.as_bytes(), good_claims().as_bytes());
    check("7515 7.1", &verifier, &good, Ok(()));
    let parts: Vec<&str> = good.split('.').collect();
    let [header, claims, signature] = parts[..] else { panic!("a token has three parts") };
    // Both have `-` or `_`, and `+` or `/` in their place in the other alphabet.
    let odd = format!(r#"{{"sub":"7","exp":{LATER},"x":"{}"}}"#, "\u{7fb}?>~\u{fb}");
    let (url, other) = (URL_SAFE_NO_PAD.encode(&odd), STANDARD_NO_PAD.encode(&odd));
    assert_ne!(url, other);
    let long = format!(r#"{{"sub":"7","exp":{LATER},"x":"{}"}}"#, "x".repeat(TOKEN_BYTES_MAX));
    // The last character carries bits of no byte: another one with the same bytes.
    let stray = |part: &str| {
        let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let (start, last) = part.split_at(part.len() - 1);
        let place = alphabet.iter().position(|c| *c == last.as_bytes()[0]).unwrap();
        assert!(!part.len().is_multiple_of(4), "it has no such bits");
        format!("{start}{}", char::from(alphabet[place + 1]))
    };
    let padded_claims = URL_SAFE.encode(good_claims() + "  ");
    let rows: &[(&str, String, Outcome)] = &[
        ("7515 2, the URL's alphabet", sign_parts(header, &url), Ok(())),
        ("7515 2, the other alphabet", sign_parts(header, &other), Err(Malformed)),
        ("7515 2, padding", sign_parts(&format!("{header}="), claims), Err(Malformed)),
        ("7515 2, padding", sign_parts(header, &format!("{padded_claims}==")), Err(Malformed)),
        ("7515 2, padding", format!("{good}="), Err(Malformed)),
        (
            "7515 2, bits left over",
            format!("{header}.{claims}.{}", stray(signature)),
            Err(Malformed),
        ),
        ("7515 2, white space", format!(" {good}"), Err(Malformed)),
        ("7515 2, white space", format!("{good}\n"), Err(Malformed)),
        ("7515 2, white space", sign_parts(header, &format!("{claims} ")), Err(Malformed)),
        ("7515 2, NUL", format!("{good}\0"), Err(Malformed)),
        ("7515 7.1, two parts", format!("{header}.{claims}"), Err(Malformed)),
        ("7515 7.1, no signature", format!("{header}.{claims}."), Err(Signature)),
        ("7515 7.1, no claims", format!("{header}..{signature}"), Err(Signature)),
        ("7515 7.1, no claims", sign_parts(header, ""), Err(Malformed)),
        ("7515 7.1, no header", format!(".{claims}.{signature}"), Err(Malformed)),
        ("7515 7.1, four parts", format!("{good}.{signature}"), Err(Malformed)),
        ("7516 7.1, encrypted", format!("{header}.a.{claims}.b.{signature}"), Err(Malformed)),
        ("7515 7.2, JSON", format!(r#"{{"protected":"{header}"}}"#), Err(Malformed)),
        ("7515 5.2, nothing", String::new(), Err(Malformed)),
        ("7515 5.2, dots", "..".to_owned(), Err(Malformed)),
        ("a bearer's prefix", format!("Bearer {good}"), Err(Malformed)),
        ("8725 3.2, cut", format!("{header}.{claims}.{}", &signature[..22]), Err(Malformed)),
        ("8725 3.2, cut", format!("{header}.{claims}.{}", &signature[..40]), Err(Signature)),
        ("7515 10, too long", sign(HEADER.as_bytes(), long.as_bytes()), Err(Malformed)),
        ("7519 5.2, nested", sign(HEADER.as_bytes(), good.as_bytes()), Err(Malformed)),
    ];
    for (section, token, expected) in rows {
        check(section, &verifier, token, *expected);
    }
}

#[test]
fn claims() {
    let verifier = verifier(None, None);
    let deep = format!(r#""x":{}{}"#, "[".repeat(1000), "]".repeat(1000));
    let rows: &[(&str, &str, Outcome)] = &[
        ("7519 4, unknown ones are ignored", r#""x":{"sub":1,"sub":2}"#, Ok(())),
        ("7519 4, twice", r#""sub":"7""#, Err(Malformed)),
        ("7519 4, twice", r#""sub":"8""#, Err(Malformed)),
        ("7519 4, twice", r#""exp":1"#, Err(Malformed)),
        ("7519 4, twice", r#""x":1,"x":1"#, Err(Malformed)),
        ("7519 4, twice when unescaped", r#""\u0073ub":"8""#, Err(Malformed)),
        ("7519 4, case", r#""Sub":"8","EXP":1,"AUD":"x""#, Ok(())),
        ("7519 4.1.1", r#""iss":"somebody""#, Ok(())),
        ("7519 4.1.1, type", r#""iss":["somebody"]"#, Err(Malformed)),
        ("7519 4.1.1, type", r#""iss":7"#, Err(Malformed)),
        ("7519 4.1.1, type", r#""iss":null"#, Err(Malformed)),
        ("7519 4.1.3, not named here", r#""aud":"shop""#, Err(Audience)),
        ("7519 4.1.3, not named here", r#""aud":["shop"]"#, Err(Audience)),
        ("7519 4.1.3, empty", r#""aud":[]"#, Err(Audience)),
        ("7519 4.1.3, empty", r#""aud":"""#, Err(Audience)),
        ("7519 4.1.3, type", r#""aud":7"#, Err(Malformed)),
        ("7519 4.1.3, type", r#""aud":{}"#, Err(Malformed)),
        ("7519 4.1.3, type", r#""aud":{"shop":true}"#, Err(Malformed)),
        ("7519 4.1.3, type", r#""aud":["shop",7]"#, Err(Malformed)),
        ("7519 4.1.3, type", r#""aud":[["shop"]]"#, Err(Malformed)),
        ("7519 4.1.3, type", r#""aud":true"#, Err(Malformed)),
        ("7519 4.1.3, type", r#""aud":null"#, Err(Malformed)),
        ("7519 4.1.5", r#""nbf":1"#, Ok(())),
        ("7519 4.1.5, to come", r#""nbf":4102444800"#, Err(Expired)),
        ("7519 4.1.5, to come", r#""nbf":1e300"#, Err(Expired)),
        ("7519 4.1.5, type", r#""nbf":"1""#, Err(Malformed)),
        ("7519 4.1.5, type", r#""nbf":null"#, Err(Malformed)),
        ("7519 4.1.6", r#""iat":1.5"#, Ok(())),
        ("7519 4.1.6, type", r#""iat":"now""#, Err(Malformed)),
        ("7519 4.1.6, type", r#""iat":[1]"#, Err(Malformed)),
        ("7519 4.1.7", r#""jti":"1""#, Ok(())),
        ("7519 4.1.7, type", r#""jti":1"#, Err(Malformed)),
        ("8259 7, a raw control character", "\"x\":\"\0\"", Err(Malformed)),
        ("8259 9, too deep", &deep, Err(Malformed)),
    ];
    for (section, more, expected) in rows {
        let claims = format!(r#"{{"sub":"7","exp":{LATER},{more}}}"#);
        let token = sign(HEADER.as_bytes(), claims.as_bytes());
        check(&format!("{section}: {more}"), &verifier, &token, *expected);
    }
}

#[test]
fn whole_sets_of_claims() {
    let verifier = verifier(None, None);
    let rows: &[(&str, &str, Outcome)] = &[
        ("7519 4.1.2, missing", r#"{"exp":4102444800}"#, Err(Malformed)),
        ("7519 4.1.2, type", r#"{"exp":4102444800,"sub":7}"#, Err(Malformed)),
        ("7519 4.1.2, type", r#"{"exp":4102444800,"sub":["7"]}"#, Err(Malformed)),
        ("7519 4.1.2, type", r#"{"exp":4102444800,"sub":null}"#, Err(Malformed)),
        ("7519 4.1.2, NUL", r#"{"exp":4102444800,"sub":"7\u0000"}"#, Err(AuthError::WrongUser)),
        ("7519 4.1.2, space", r#"{"exp":4102444800,"sub":" 7"}"#, Err(AuthError::WrongUser)),
        ("7519 4.1.2, digits", r#"{"exp":4102444800,"sub":"７"}"#, Err(AuthError::WrongUser)),
        ("7519 4.1.4, missing", r#"{"sub":"7"}"#, Err(Malformed)),
        ("7519 4.1.4, over", r#"{"sub":"7","exp":0}"#, Err(Expired)),
        ("7519 4.1.4, over", r#"{"sub":"7","exp":-1}"#, Err(Expired)),
        ("7519 4.1.4, over", r#"{"sub":"7","exp":-1e300}"#, Err(Expired)),
        ("7519 4.1.4, over", r#"{"sub":"7","exp":1e-300}"#, Err(Expired)),
        ("7519 2, a fraction", r#"{"sub":"7","exp":4102444800.5}"#, Ok(())),
        ("7519 2, an exponent", r#"{"sub":"7","exp":4.1e9}"#, Ok(())),
        ("7519 2, far", r#"{"sub":"7","exp":18446744073709551616}"#, Ok(())),
        ("7519 2, far", r#"{"sub":"7","exp":1e300}"#, Ok(())),
        ("8259 6, no number", r#"{"sub":"7","exp":1e400}"#, Err(Malformed)),
        ("8259 6, no number", r#"{"sub":"7","exp":NaN}"#, Err(Malformed)),
        ("8259 6, no number", r#"{"sub":"7","exp":0x7fffffff}"#, Err(Malformed)),
        ("7519 4.1.4, type", r#"{"sub":"7","exp":"4102444800"}"#, Err(Malformed)),
        ("7519 4.1.4, type", r#"{"sub":"7","exp":true}"#, Err(Malformed)),
        ("7519 4.1.4, type", r#"{"sub":"7","exp":null}"#, Err(Malformed)),
        ("7519 7.2, JSON", r#"{"sub":"7","exp":4102444800}x"#, Err(Malformed)),
        ("7519 7.2, JSON", r#"{"sub":"7","exp":4102444800}{}"#, Err(Malformed)),
        ("7519 7.2, JSON", "\u{feff}{\"sub\":\"7\",\"exp\":4102444800}", Err(Malformed)),
        ("7519 7.2, an object", r#"[{"sub":"7","exp":4102444800}]"#, Err(Malformed)),
        ("7519 7.2, an object", "null", Err(Malformed)),
        ("7519 7.2, space", " {\"sub\": \"7\", \"exp\":\n4102444800} ", Ok(())),
    ];
    for (section, claims, expected) in rows {
        let token = sign(HEADER.as_bytes(), claims.as_bytes());
        check(&format!("{section}: {claims}"), &verifier, &token, *expected);
    }
}

#[test]
fn audiences_and_issuers() {
    let verifier = verifier(Some("shop"), Some("https://id.example"));
    let issued = r#""iss":"https://id.example""#;
    let rows: &[(&str, String, Outcome)] = &[
        ("7519 4.1.3", format!(r#"{issued},"aud":"shop""#), Ok(())),
        ("7519 4.1.3", format!(r#"{issued},"aud":["bank","shop"]"#), Ok(())),
        ("7519 4.1.3, case", format!(r#"{issued},"aud":"Shop""#), Err(Audience)),
        ("7519 4.1.3, a part", format!(r#"{issued},"aud":"shop2""#), Err(Audience)),
        ("7519 4.1.3, empty", format!(r#"{issued},"aud":[]"#), Err(Audience)),
        ("7519 4.1.3, type", format!(r#"{issued},"aud":["shop",7]"#), Err(Malformed)),
        ("7519 4.1.3, type", format!(r#"{issued},"aud":{{"shop":1}}"#), Err(Malformed)),
        ("7519 4.1.3, missing", issued.to_owned(), Err(Audience)),
        ("7519 4.1.1, missing", r#""aud":"shop""#.to_owned(), Err(Audience)),
        (
            "7519 4.1.1, case",
            r#""aud":"shop","iss":"https://ID.example""#.to_owned(),
            Err(Audience),
        ),
        (
            "7519 4.1.1, slash",
            r#""aud":"shop","iss":"https://id.example/""#.to_owned(),
            Err(Audience),
        ),
        (
            "7519 4.1.1, list",
            r#""aud":"shop","iss":["https://id.example"]"#.to_owned(),
            Err(Malformed),
        ),
    ];
    for (section, more, expected) in rows {
        let claims = format!(r#"{{"sub":"7","exp":{LATER},{more}}}"#);
        let token = sign(HEADER.as_bytes(), claims.as_bytes());
        check(&format!("{section}: {more}"), &verifier, &token, *expected);
    }
}

/// The leeway, to the second, at a time of the test's own.
#[test]
fn clocks_may_be_off_by_the_leeway() {
    let demands = |leeway_s| Demands { audience: None, issuer: None, leeway_s };
    let claims = |more: &str| {
        let text = format!(r#"{{"sub":"7",{more}}}"#);
        serde_json::from_str::<jws::Members>(&text).unwrap()
    };
    for (more, leeway_s, now_s, expected) in [
        (r#""exp":1000"#, 0.0, 999.9, Ok("7")),
        (r#""exp":1000"#, 0.0, 1000.0, Err(Expired)),
        (r#""exp":1000"#, 5.0, 1004.9, Ok("7")),
        (r#""exp":1000"#, 5.0, 1005.0, Err(Expired)),
        (r#""exp":1000.5"#, 0.0, 1000.4, Ok("7")),
        (r#""exp":1000.5"#, 0.0, 1000.6, Err(Expired)),
        (r#""exp":2000,"nbf":1000"#, 0.0, 1000.0, Ok("7")),
        (r#""exp":2000,"nbf":1000"#, 0.0, 999.9, Err(Expired)),
        (r#""exp":2000,"nbf":1000"#, 5.0, 995.0, Ok("7")),
        (r#""exp":2000,"nbf":1000"#, 5.0, 994.9, Err(Expired)),
    ] {
        let claims = claims(more);
        let subject = demands(leeway_s).check(&claims, now_s).map(|proof| proof.subject);
        assert_eq!(subject, expected, "{more} {now_s}");
    }
}

/// A key is for one algorithm: RFC 8725, 2.1 and 3.1.
#[test]
fn a_public_key_verifies_no_hmac() {
    let public = include_bytes!("../../testdata/rs256.public.pem");
    let key = DecodingKey::from_rsa_pem(public).unwrap();
    let demands = Demands { audience: None, issuer: None, leeway_s: 0.0 };
    let keys = Keys::One(Arc::new(Key::new(key, Algorithm::RS256, &[public])));
    let verifier =
        Verifier { method: Method::Jwt(Jwt { keys, demands: demands.into(), pool: None }) };
    for alg in ["HS256", "RS256"] {
        let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{alg}"}}"#));
        let message = format!("{header}.{}", URL_SAFE_NO_PAD.encode(good_claims()));
        let secret = EncodingKey::from_secret(public);
        let signature = crypto::sign(message.as_bytes(), &secret, Algorithm::HS256).unwrap();
        check("8725 2.1", &verifier, &format!("{message}.{signature}"), Err(Signature));
    }
}
