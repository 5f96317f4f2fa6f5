//! Every number in a `PROMISES.md` is claimed by a test, and every claim is of a number that is there.

mod sources;

use std::collections::{BTreeMap, BTreeSet};

#[test]
fn every_promise_is_claimed_by_a_test_and_every_claim_is_of_a_promise() {
    let files = sources::read("", &[".rs", "PROMISES.md"]);
    let is_list = |(path, _): &File| path.ends_with("PROMISES.md");
    let (lists, sources): (Vec<_>, Vec<_>) = files.into_iter().partition(is_list);
    let problems = problems(&lists, &sources);
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

/// A file of the repository: its path from the root, and its text.
type File = (String, String);

/// What is wrong with the numbers in `lists` and their claims in `sources`, a line for each problem.
fn problems(lists: &[File], sources: &[File]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut promised = BTreeMap::new();
    let mut claimed = BTreeSet::new();
    for (path, text) in lists {
        let listed = listed(text);
        if listed.is_empty() {
            problems.push(format!("{path}: no promise; write `- **RT-1** ...`"));
        }
        for (line, number) in listed {
            let here = format!("{path}:{line}");
            if let Some(there) = promised.insert(number, here.clone()) {
                problems.push(format!("{here}: {number} is also at {there}"));
            }
        }
    }
    for (path, text) in sources {
        for (line, claim) in claims(text) {
            let problem = match claim {
                Ok(number) if promised.contains_key(number) => {
                    claimed.insert(number);
                    continue;
                }
                Ok(number) => format!("{number} is in no PROMISES.md"),
                Err(problem) => problem,
            };
            problems.push(format!("{path}:{line}: {problem}"));
        }
    }
    for (number, place) in promised {
        if !claimed.contains(number) {
            problems.push(format!("{place}: no test claims {number}"));
        }
    }
    problems
}

/// The numbers that a `PROMISES.md` lists, each with its line.
fn listed(text: &str) -> Vec<(usize, &str)> {
    let mut listed = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        let bold = text.trim_start().strip_prefix("- **");
        if let Some((number, _)) = bold.and_then(|bold| bold.split_once("**"))
            && is_number(number)
        {
            listed.push((line, number));
        }
    }
    listed
}

/// The claims in a Rust file, each with its line: a number that a test claims, or what is wrong with it.
fn claims(text: &str) -> Vec<(usize, Result<&str, String>)> {
    let mut claims = Vec::new();
    // What the comments and attributes just above a line say: the claims, and whether a function there is a test.
    let mut pending = Vec::new();
    let mut is_test = false;
    // An empty line ends what stands at the end of the file.
    let mut lines = (1..).zip(text.lines().map(str::trim).chain([""]));
    while let Some((line, text)) = lines.next() {
        let is_fn = text.split_whitespace().any(|word| word == "fn");
        is_test |= makes_test(text);
        if text.starts_with("//") {
            pending.extend(claimed(text).map(|number| (line, number)));
        } else if text.starts_with("#[") && !is_fn {
            let mut open = text.matches('[').count();
            let mut closed = text.matches(']').count();
            while let Some((_, text)) = (open > closed).then(|| lines.next()).flatten() {
                open += text.matches('[').count();
                closed += text.matches(']').count();
            }
        } else {
            claims.extend(pending.drain(..).map(|(line, number)| {
                let claim = match is_number(number) {
                    true if is_fn && is_test => Ok(number),
                    true => Err(format!("the claim of {number} stands above no test")),
                    false => Err(format!("`{number}` is not the number of a promise")),
                };
                (line, claim)
            }));
            is_test = false;
        }
    }
    claims
}

/// What a comment claims, if it does: `// promise: RT-1` or `// promises: RT-1, RT-2`.
fn claimed(comment: &str) -> impl Iterator<Item = &str> {
    let all = comment
        .strip_prefix("// promise:")
        .or_else(|| comment.strip_prefix("// promises:"));
    all.into_iter()
        .flat_map(|all| all.split(','))
        .map(str::trim)
}

/// Whether a line starts with `#[test]`, `#[tokio::test(..)]` or another attribute whose path ends in `test`.
fn makes_test(line: &str) -> bool {
    let path = line.strip_prefix("#[").unwrap_or_default();
    let path = path.split(['(', ']', ' ']).next().unwrap_or_default();
    matches!(path.rsplit("::").next(), Some("test" | "property_test"))
}

/// Whether this looks like `RT-1`.
fn is_number(text: &str) -> bool {
    text.split_once('-').is_some_and(|(letters, digits)| {
        !letters.is_empty()
            && letters.bytes().all(|byte| byte.is_ascii_uppercase())
            && !digits.is_empty()
            && digits.bytes().all(|byte| byte.is_ascii_digit())
    })
}

// The samples below are lines of a string each, so that their claims are not taken for claims of this file.

/// The problems of one `PROMISES.md` that lists RT-1 and RT-2, and of one Rust file.
fn problems_of(rust: &[&str]) -> Vec<String> {
    let promises = "# Promises\n\n**Backoff**\n- **RT-1** Waits.\n- **RT-2** Ends.\n";
    problems(
        &[("PROMISES.md".into(), promises.into())],
        &[("a.rs".into(), rust.join("\n"))],
    )
}

#[test]
fn claims_of_all_promises_are_no_problem() {
    let one_comment = ["// promises: RT-1, RT-2", "#[test]", "fn a() {}"];
    assert!(problems_of(&one_comment).is_empty());

    let between = [
        "// promise: RT-1",
        "// promise: RT-2",
        "/// Says more.",
        "#[tokio::test(",
        "    start_paused = true,",
        ")]",
        "#[expect(clippy::x, reason = \"y\")]",
        "async fn a() {}",
    ];
    assert!(problems_of(&between).is_empty());

    let property = [
        "proptest! {",
        "    #[test] // promise: RT-9 is text here",
        "    // promise: RT-1",
        "    fn a(x in 0..9) {}",
        "",
        "    // promise: RT-2",
        "    #[test] fn b(x: [u8; 2]) {}",
        "}",
    ];
    assert!(problems_of(&property).is_empty());
}

#[test]
fn a_promise_that_no_test_claims_is_a_problem() {
    let problems = problems_of(&["// promise: RT-1", "#[test]", "fn a() {}"]);
    assert_eq!(problems, ["PROMISES.md:5: no test claims RT-2"]);
}

#[test]
fn a_claim_of_no_promise_is_a_problem() {
    let claim = "// promises: RT-1, RT-2, RT-3, RT";
    let problems = problems_of(&["", claim, "#[test]", "fn a() {}"]);
    let expected = [
        "a.rs:2: RT-3 is in no PROMISES.md",
        "a.rs:2: `RT` is not the number of a promise",
    ];
    assert_eq!(problems, expected);
}

#[test]
fn a_claim_above_no_test_is_a_problem_and_counts_for_nothing() {
    let misplaced: [&[&str]; 6] = [
        &["// promise: RT-2", "fn helper() {}"],
        &["// promise: RT-2", "// #[test]", "fn a() {}"],
        &["// promise: RT-2", "", "#[test]", "fn a() {}"],
        &["// promise: RT-2", "mod tests {", "#[test]", "fn a() {}"],
        &["// promise: RT-2", "#[cfg(test)]", "fn helper() {}"],
        &["// promise: RT-2"],
    ];
    for lines in misplaced {
        let start = ["// promise: RT-1", "#[test]", "fn z() {}"];
        let problems = problems_of(&[&start, lines].concat());
        let expected = [
            "a.rs:4: the claim of RT-2 stands above no test",
            "PROMISES.md:5: no test claims RT-2",
        ];
        assert_eq!(problems, expected, "{lines:?}");
    }
}

#[test]
fn a_number_that_is_listed_twice_and_a_list_of_none_are_problems() {
    let list = "- **BR-1** Opens.\n- **BR-1** Closes.\n".to_owned();
    let claim = ["// promise: BR-1", "#[test]", "fn a() {}"].join("\n");
    let lists = [
        ("x.md".to_owned(), list),
        ("y.md".to_owned(), "Soon.".to_owned()),
    ];
    let expected = [
        "x.md:2: BR-1 is also at x.md:1",
        "y.md: no promise; write `- **RT-1** ...`",
    ];
    assert_eq!(problems(&lists, &[("a.rs".to_owned(), claim)]), expected);
}
