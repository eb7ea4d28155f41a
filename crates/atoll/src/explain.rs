//! `atoll explain CODE`: the page of an error.

use std::process::ExitCode;

use atoll_core::{
    Error, Result,
    error::codes::{self, BAD_OPTION},
};

use crate::terminal;

/// What to explain.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The code: ATL-1001, or just 1001.
    code: String,
}

include!(concat!(env!("OUT_DIR"), "/pages.rs"));

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    terminal::say(page(&arguments.code)?);
    Ok(ExitCode::SUCCESS)
}

fn page(code: &str) -> Result<&'static str> {
    let digits = code.trim().to_ascii_uppercase();
    let digits = digits.strip_prefix("ATL-").unwrap_or(&digits);
    digits
        .parse()
        .ok()
        .and_then(codes::find)
        .and_then(|code| PAGES.iter().find(|(number, _)| *number == code.number))
        .map(|(_, page)| page.trim_end())
        .ok_or_else(|| {
            Error::new(BAD_OPTION, format!("there is no error code {code:?}."))
                .with_fix("Codes look like ATL-1001; docs/errors/ lists them all.")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_explained_in_any_spelling() {
        for code in codes::ALL {
            let expected = format!("# {code}");
            for spelling in
                [code.to_string(), code.number.to_string(), code.to_string().to_lowercase()]
            {
                assert!(page(&spelling).unwrap().starts_with(&expected), "{spelling}");
            }
        }
        assert!(page("ATL-0001").is_err());
        assert!(page("what").is_err());
    }
}
