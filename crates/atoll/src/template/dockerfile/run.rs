//! RUN.

use atoll_core::Result;

use super::{
    Reader, array,
    lines::{self, Document, Instruction},
    refuse, words,
};

impl Reader<'_> {
    pub(super) fn run(&mut self, one: &Instruction) -> Result<()> {
        for (flag, value) in &one.flags {
            self.run_flag(one, flag, value.as_deref().unwrap_or_default())?;
        }
        if one.text.is_empty() {
            return Err(refuse(one.line, "RUN runs nothing.", "Give it a command."));
        }
        let command = match array(one)? {
            Some(words) if words.is_empty() => {
                return Err(refuse(one.line, "RUN runs nothing.", "Give it a command."));
            }
            Some(words) => words::join(&words),
            None => with_documents(one)?,
        };
        self.push("RUN", vec![command], Some(one.line));
        Ok(())
    }

    fn run_flag(&mut self, one: &Instruction, flag: &str, value: &str) -> Result<()> {
        match flag {
            // The step is right without it, only slower.
            "mount"
                if ["cache", "tmpfs"]
                    .iter()
                    .any(|kind| value.contains(&format!("type={kind}"))) =>
            {
                self.note(one.line, format!("--mount={value} has no effect."));
                Ok(())
            }
            "mount" => Err(refuse(
                one.line,
                format!("RUN --mount={value} is not supported."),
                "COPY what the step needs, or pass it with --build-arg: it is then in the template.",
            )),
            "network" | "security" => {
                self.note(one.line, format!("--{flag}={value} has no effect."));
                Ok(())
            }
            _ => Err(refuse(one.line, format!("RUN has no flag --{flag}."), "Leave it out.")),
        }
    }
}

/// The command with the documents behind its line, for the shell to read.
fn with_documents(one: &Instruction) -> Result<String> {
    match &one.documents[..] {
        [] => Ok(one.text.clone()),
        // The document is the script.
        [document]
            if words::split(&one.text, '\\').len() == 1 && lines::marker(&one.text).is_some() =>
        {
            script(one, document)
        }
        documents => {
            let mut command = one.text.clone();
            for Document { name, content, .. } in documents {
                command.push_str(&format!("\n{content}{name}"));
            }
            Ok(command)
        }
    }
}

fn script(one: &Instruction, document: &Document) -> Result<String> {
    let lines = document.content.split_inclusive('\n');
    let strip = |line: &str| match document.strips_tabs {
        true => line.trim_start_matches('\t').to_owned(),
        false => line.to_owned(),
    };
    let script: String = lines.map(strip).collect();
    if script.starts_with("#!") {
        let fix = "Write `RUN python3 <<EOF`, say, or put the script in a file and COPY it.";
        return Err(refuse(
            one.line,
            "a here-document with an interpreter of its own is not supported.",
            fix,
        ));
    }
    Ok(script)
}
