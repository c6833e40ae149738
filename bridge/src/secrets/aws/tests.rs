//! References to Secrets Manager, and what of its answers is a value.

use super::*;

fn wrong(rest: &str) -> &'static str {
    parse(rest).err().unwrap_or_else(|| panic!("{rest} was taken"))
}

#[test]
fn a_name_may_hold_slashes_and_an_arn_is_taken_whole() {
    for rest in [
        "eu-central-1/key",
        "us-gov-west-1/team/paperclip/api-key",
        "eu-central-1/team/key#token",
        "eu-central-1/rds!cluster-1",
        "eu-central-1/arn:aws:secretsmanager:eu-central-1:123456789012:secret:team/key-AbCdEf#a b",
        "cn-north-1/arn:aws-cn:secretsmanager:cn-north-1:123456789012:secret:key-AbCdEf",
    ] {
        assert!(parse(rest).is_ok(), "{rest}");
    }
}

#[test]
fn a_reference_that_cannot_be_meant_says_what_is_wrong() {
    assert!(wrong("key").contains("slash"));
    assert!(wrong("EU-CENTRAL-1/key").contains("REGION"));
    assert!(wrong("evil.example/key").contains("REGION"));
    assert!(wrong("eu-central-1/").contains("NAME"));
    assert!(wrong("eu-central-1/a b").contains("NAME"));
    assert!(wrong("eu-central-1/key#").contains("`#`"));
    assert!(wrong("eu-west-1/arn:aws:secretsmanager:eu-central-1:1:secret:k").contains("another region"));
    assert!(wrong("eu-west-1/arn:aws:s3:eu-west-1:1:secret:k").contains("not that of a secret"));
    assert!(wrong("eu-west-1/arn:aws").contains("not that of a secret"));
}

fn read(key: Option<&str>, answer: &str) -> Result<String, String> {
    let secret = AwsSecret {
        region: "eu-central-1".into(),
        id: "key".into(),
        key: key.map(str::to_owned),
    };
    secret
        .value(answer.as_bytes())
        .map(|text| text.to_string())
        .map_err(|fault| fault.to_string())
}

#[test]
fn text_binary_and_a_member_of_json_are_values() {
    assert_eq!(read(None, r#"{"SecretString":"pk","Name":"key"}"#).unwrap(), "pk");
    assert_eq!(read(None, r#"{"SecretBinary":"cGs="}"#).unwrap(), "pk");
    assert_eq!(
        read(Some("a.b"), r#"{"SecretString":"{\"a.b\":\"pk\",\"n\":1}"}"#).unwrap(),
        "pk"
    );
}

#[test]
fn what_is_no_value_is_refused_and_not_repeated() {
    for (key, answer) in [
        (None, r#"{"SecretBinary":"/w=="}"#),
        (None, r#"{"SecretBinary":"pk_live_1"}"#),
        (None, "{}"),
        (None, r#"["pk_live_1"]"#),
        (None, r#"{"SecretString":{"pk_live_1":1}}"#),
        (Some("k"), r#"{"SecretString":"pk_live_1"}"#),
        (Some("k"), r#"{"SecretString":"[\"pk_live_1\"]"}"#),
        (Some("k"), r#"{"SecretString":"{\"k\":[\"pk_live_1\"]}"}"#),
        (Some("k"), r#"{"SecretString":"{\"pk_live_1\":\"x\"}"}"#),
    ] {
        let refusal = read(key, answer).unwrap_err();
        assert!(!refusal.contains("pk_live_1"), "{refusal}");
    }
}
