//! Where the service is: AWS's own address of a region, or the one that the environment names.

use runners::http::BaseUrl;

use super::super::error::Fault;
use super::super::place::Surroundings;

/// Most specific first.
const VARIABLES: [&str; 2] = ["AWS_ENDPOINT_URL_SECRETS_MANAGER", "AWS_ENDPOINT_URL"];

/// The address of Secrets Manager for `region`.
///
/// # Errors
///
/// [`Fault::Unusable`] for a variable that holds no address; `http://` is for this machine only, because the answer
/// holds the secret.
pub(super) fn of(around: &Surroundings, region: &str) -> Result<BaseUrl, Fault> {
    for name in VARIABLES {
        if let Some(text) = around.variable(name) {
            return BaseUrl::parse(&text).map_err(|why| Fault::Unusable(format!("{name} {why}")));
        }
    }
    let suffix = if region.starts_with("cn-") { ".cn" } else { "" };
    BaseUrl::parse(&format!("https://secretsmanager.{region}.amazonaws.com{suffix}"))
        .map_err(|why| Fault::Unusable(format!("the region's address {why}")))
}
