use super::*;

/// Every instruction that becomes a step, in all of its forms.
const ALL: &str = r#"# syntax=docker/dockerfile:1
ARG VERSION=3.11
FROM python:3.11 AS base
ENV A=1 B="two words" C=$A/x
ENV OLD value with  spaces
ARG PORT
ARG X=1 Y="a b"
WORKDIR /app
COPY --chown=app:app --chmod=755 app.py src /app/
COPY ["my file", "/app/my file"]
ADD app.py "dest dir/"
USER app
RUN apt-get update \
    # comment
    && apt-get install -y curl \

    && true
RUN ["python3", "-c", "print('x')"]
RUN cat <<EOF > /x
hello $A
EOF
RUN <<EOF
set -e
echo hi
EOF
RUN <<-TAB
	echo tab
	TAB
EXPOSE 80
LABEL a=b
ENTRYPOINT ["python3", "app.py"]
CMD ["--port", "80 80"]
"#;

fn read_simply(content: &str) -> Result<Recipe> {
    read(content, &BTreeMap::new(), true)
}

fn steps(recipe: &Recipe) -> Vec<Vec<&str>> {
    let mut all = Vec::new();
    for Step { kind, args, .. } in &recipe.steps {
        all.push([*kind].into_iter().chain(args.iter().map(String::as_str)).collect());
    }
    all
}

/// What `Template().from_dockerfile(…)` of e2b 2.63.0 for Python makes of it.
#[test]
fn steps_are_those_of_the_published_sdk() {
    let recipe = read_simply(ALL).unwrap();
    assert_eq!(
        steps(&recipe),
        [
            vec!["USER", "root"],
            vec!["WORKDIR", "/"],
            vec!["ENV", "VERSION", "3.11"],
            vec!["ENV", "A", "1", "B", "two words", "C", "$A/x"],
            vec!["ENV", "OLD", "value with  spaces"],
            vec!["ENV", "PORT", ""],
            vec!["ENV", "X", "1", "Y", "a b"],
            vec!["WORKDIR", "/app"],
            vec!["COPY", "app.py", "/app/", "app:app", "0755"],
            vec!["COPY", "src", "/app/", "app:app", "0755"],
            vec!["COPY", "my file", "/app/my file", "", ""],
            vec!["COPY", "app.py", "dest dir/", "", ""],
            vec!["USER", "app"],
            vec!["RUN", "apt-get update     && apt-get install -y curl     && true"],
            vec!["RUN", r#"python3 -c 'print('"'"'x'"'"')'"#],
            vec!["RUN", "cat <<EOF > /x\nhello $A\nEOF"],
            vec!["RUN", "set -e\necho hi\n"],
            vec!["RUN", "echo tab\n"],
        ]
    );
    assert_eq!(recipe.image.as_deref(), Some("python:3.11"));
    assert_eq!(recipe.start.as_deref(), Some("python3 app.py --port '80 80'"));
    assert_eq!(recipe.ready.as_deref(), Some("sleep 20"));
    let lines: Vec<Option<usize>> = recipe.steps.iter().map(|step| step.line).collect();
    assert_eq!(lines[..3], [None, None, Some(2)]);
    assert_eq!(lines[13..], [Some(13), Some(18), Some(19), Some(22), Some(26)]);
    assert_eq!(recipe.notes.len(), 2);
    assert!(recipe.notes[0].starts_with("line 29: EXPOSE"), "{:?}", recipe.notes);
}

/// As the same converter has them.
#[test]
fn start_commands_are_put_together_as_docker_does() {
    for (instructions, expected) in [
        ("ENTRYPOINT [\"sh\"]\nCMD serve  it", Some("sh /bin/sh -c 'serve  it'")),
        ("ENTRYPOINT exec top -b\nCMD [\"a\"]", Some("exec top -b")),
        ("CMD [\"node\", \"a b.js\"]", Some("node 'a b.js'")),
        ("CMD serve", Some("serve")),
        ("CMD one\nCMD two", Some("two")),
        ("CMD []", None),
        ("CMD", None),
        ("", None),
    ] {
        let recipe = read_simply(&format!("FROM x\n{instructions}\n")).unwrap();
        assert_eq!(recipe.start.as_deref(), expected, "{instructions}");
        assert_eq!(recipe.ready.is_some(), expected.is_some());
    }
}

#[test]
fn a_health_check_says_when_a_template_is_ready() {
    for (instructions, expected) in [
        (
            "CMD a\nHEALTHCHECK --interval=5s CMD curl -f http://127.0.0.1/ || exit 1",
            "curl -f http://127.0.0.1/ || exit 1",
        ),
        ("HEALTHCHECK CMD [\"test\", \"-f\", \"a b\"]\nCMD a", "test -f 'a b'"),
        ("HEALTHCHECK CMD a\nHEALTHCHECK NONE\nCMD a", "sleep 20"),
    ] {
        let recipe = read_simply(&format!("FROM x\n{instructions}\n")).unwrap();
        assert_eq!(recipe.ready.as_deref(), Some(expected), "{instructions}");
        assert!(recipe.notes.is_empty());
    }
}

#[test]
fn user_and_directory_end_as_templates_have_them() {
    let recipe = read_simply("FROM x\nRUN a\n").unwrap();
    let expected = [
        vec!["USER", "root"],
        vec!["WORKDIR", "/"],
        vec!["RUN", "a"],
        vec!["USER", "user"],
        vec!["WORKDIR", "/home/user"],
    ];
    assert_eq!(steps(&recipe), expected);
    let recipe = read_simply("FROM x\nUSER a\nWORKDIR b\n").unwrap();
    assert_eq!(steps(&recipe)[2..], [vec!["USER", "a"], vec!["WORKDIR", "b"]]);
}

#[test]
fn arguments_come_from_the_command_line() {
    let values: BTreeMap<String, String> =
        [("TAG", "12"), ("UNUSED", "x")].map(|(name, value)| (name.into(), value.into())).into();
    let content = "ARG TAG=11\nFROM debian:${TAG}-slim\nARG DIR=src\nCOPY $DIR/a /\n";
    let recipe = read(content, &values, true).unwrap();
    assert_eq!(recipe.image.as_deref(), Some("debian:12-slim"));
    let expected =
        [vec!["ENV", "TAG", "12"], vec!["ENV", "DIR", "src"], vec!["COPY", "src/a", "/", "", ""]];
    assert_eq!(steps(&recipe)[2..5], expected);
    assert_eq!(recipe.notes, ["--build-arg UNUSED has no effect: there is no ARG UNUSED."]);
}

#[test]
fn a_template_may_stand_in_for_from() {
    let recipe = read("RUN a\n", &BTreeMap::new(), false).unwrap();
    assert_eq!(recipe.image, None);
    assert_eq!(steps(&recipe)[2], ["RUN", "a"]);
}

#[test]
fn what_has_no_effect_is_noted() {
    for (instruction, expected) in [
        ("EXPOSE 80/tcp", "EXPOSE has no effect"),
        ("VOLUME /data", "VOLUME has no effect"),
        ("LABEL a=b", "LABEL has no effect"),
        ("MAINTAINER me", "MAINTAINER has no effect"),
        ("STOPSIGNAL SIGINT", "STOPSIGNAL has no effect"),
        ("ONBUILD RUN a", "ONBUILD has no effect"),
        ("SHELL [\"/bin/bash\", \"-o\", \"pipefail\", \"-c\"]", "SHELL has no effect"),
        ("RUN --mount=type=cache,target=/root/.cache a", "--mount=type=cache"),
        ("RUN --network=none a", "--network=none has no effect"),
        ("ADD a.tar.gz /x", "copies a.tar.gz as it is"),
    ] {
        let recipe = read_simply(&format!("FROM x\n{instruction}\n")).unwrap();
        assert_eq!(recipe.notes.len(), 1, "{instruction}: {:?}", recipe.notes);
        assert!(recipe.notes[0].starts_with("line 2: "), "{:?}", recipe.notes);
        assert!(recipe.notes[0].contains(expected), "{:?}", recipe.notes);
    }
    let recipe = read_simply("FROM --platform=linux/arm64 x\nCOPY --link a /\n").unwrap();
    assert!(
        recipe.notes.len() == 1 && recipe.notes[0].contains("--platform"),
        "{:?}",
        recipe.notes
    );
}

#[test]
fn what_cannot_be_built_is_refused_with_its_line() {
    for (instruction, expected) in [
        ("FROM y", "a second FROM begins another stage"),
        ("RUN", "RUN runs nothing"),
        ("RUN []", "RUN runs nothing"),
        ("RUN [\"a\", 1]", "1 is not a string"),
        ("RUN --mount=type=secret,id=x a", "RUN --mount=type=secret,id=x is not supported"),
        ("RUN --mount=target=/x a", "is not supported"),
        ("RUN --device=gpu a", "RUN has no flag --device"),
        ("RUN <<EOF\n#!/usr/bin/python3\nEOF", "an interpreter of its own"),
        ("RUN <<EOF\na", "does not end"),
        ("COPY a", "COPY needs a source and a destination"),
        ("COPY", "COPY needs a source and a destination"),
        ("COPY --from=base /a /b", "COPY --from is not supported"),
        ("COPY --exclude=a . /b", "COPY --exclude is not supported"),
        ("COPY --parents a /b", "COPY --parents is not supported"),
        ("COPY --chmod=u+x a /b", "--chmod=u+x is not a mode"),
        ("COPY --chmod=77777 a /b", "is not a mode"),
        ("COPY /etc/passwd /b", "\"/etc/passwd\" is not below the directory"),
        ("COPY a/../../b /b", "is not below the directory"),
        ("COPY <<EOF /b\nx\nEOF", "COPY of a here-document is not supported"),
        ("COPY a <<EOF\nEOF", "COPY of a here-document is not supported"),
        ("COPY \"a /b", "needs a source"),
        ("COPY a \"/b", "a double quote is not closed"),
        ("ADD https://example.com/x /b", "ADD of https://example.com/x is not supported"),
        ("ADD --checksum=sha256:0 a /b", "ADD --checksum is not supported"),
        ("ADD --unpack a /b", "ADD --unpack is not supported"),
        ("ENV", "ENV sets nothing"),
        ("ENV A", "ENV gives \"A\" no value"),
        ("ENV A=1 B", "ENV gives \"B\" no value"),
        ("ENV =1", "ENV has a value without a name"),
        ("ENV A=${", "a name is missing"),
        ("ARG", "ARG names nothing"),
        ("ARG =x", "ARG has a value without a name"),
        ("USER", "USER names nothing"),
        ("USER --x a", "USER has no flag --x"),
        ("WORKDIR", "WORKDIR names nothing"),
        ("HEALTHCHECK", "HEALTHCHECK has no command"),
        ("HEALTHCHECK CMD", "HEALTHCHECK has no command"),
        ("CMD [1]", "1 is not a string"),
        ("SHELL [\"/bin/zsh\", \"-c\"]", "by no other shell"),
        ("SHELL bash", "by no other shell"),
        ("&& make", "there is no instruction \"&&\""),
        ("INCLUDE other", "there is no instruction \"INCLUDE\""),
    ] {
        let error = read_simply(&format!("FROM x\n{instruction}\n")).unwrap_err();
        assert_eq!(error.code, codes::INVALID_REQUEST, "{instruction}");
        let text = error.to_string();
        assert!(text.contains("line 2: ") && text.contains(expected), "{instruction}: {text}");
        assert!(!error.fix.is_empty(), "{instruction}: {text}");
    }
    for (content, expected) in [
        ("", "no FROM"),
        ("RUN a\nFROM x\n", "line 1: RUN comes before FROM"),
        ("FROM\n", "line 1: FROM takes one image"),
        ("FROM a b\n", "line 1: FROM takes one image"),
        ("FROM a as b c\n", "line 1: FROM takes one image"),
        ("FROM --x=1 a\n", "line 1: FROM has no flag --x"),
        ("FROM scratch\n", "line 1: FROM scratch has no shell"),
        ("ARG V\nFROM $V\n", "line 2: the image's name is empty"),
    ] {
        let text = read_simply(content).unwrap_err().to_string();
        assert!(text.contains(expected), "{content:?}: {text}");
    }
}
