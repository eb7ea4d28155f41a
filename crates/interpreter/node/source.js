'use strict';
// From the text of a cell to what the inspector evaluates, in the same lines and, but for the first
// line, the same columns:
//
// - TypeScript becomes JavaScript;
// - a first `await` takes the code out of the inspector's hands, which cannot interrupt what it calls;
// - declarations of `import`, which only modules may have, become awaited calls before all else, and
//   the words `import` and `export` give way to what a script may say;
// - `const` becomes `let` where its names are those of all cells: the engine lets a name be declared
//   again, but only in the same way, and whoever runs a changed cell again may have changed that.

const { quietly } = require('./quiet.js');
const { scan } = require('./scan.js');

const START = 'await void 0;';

// JavaScript for TypeScript, and a source map if it is needed. Types alone are blanked out; only where
// they have meaning (enum, namespace, parameter properties) the code is written anew.
function strip(code, name) {
  const { stripTypeScriptTypes } = require('node:module');
  if (!stripTypeScriptTypes) {
    throw new SyntaxError(`TypeScript needs Node 22.13 or newer; this is ${process.version}`);
  }
  try {
    return { text: quietly(() => stripTypeScriptTypes(code, { mode: 'strip' })) };
  } catch (error) {
    if (error.code !== 'ERR_UNSUPPORTED_TYPESCRIPT_SYNTAX') throw unreadable(error, name);
  }
  try {
    const options = { mode: 'transform', sourceMap: true };
    const text = quietly(() => stripTypeScriptTypes(code, options));
    const at = text.lastIndexOf('//# sourceMappingURL=');
    const map = Buffer.from(text.slice(text.indexOf(',', at) + 1), 'base64').toString();
    return { text: text.slice(0, at), map };
  } catch (error) {
    throw unreadable(error, name);
  }
}

// Its own message, with the place, but without the frames of the parser.
function unreadable(error, name) {
  const [stack] = String(error.stack).split(/\n\s+at /);
  const plain = new SyntaxError(error.message);
  plain.stack = stack.replace(/^[^:\n]*:(?=\d)/, `${name}:`).replace(/SyntaxError \[\w+\]/, 'SyntaxError');
  return plain;
}

const blank = (text) => text.replace(/[^\n]/g, ' ');

// The code that a declaration of an import becomes.
function load({ specifier, options, bindings, namespace }) {
  const names = bindings.map(([name]) => name);
  const call = `await $atoll(${specifier},${options ?? 'undefined'},[${names.join()}])`;
  const pattern = `{${bindings.map(([name, local]) => `${name}:${local}`).join()}}`;
  if (!namespace) return bindings.length ? `let ${pattern}=${call};` : `${call};`;
  return `let ${namespace}=${call};${bindings.length ? `let ${pattern}=${namespace};` : ''}`;
}

// The code to evaluate, how much comes before its first line, and the source map.
function prepare(code, typescript, name) {
  const { text, map } = typescript ? strip(code, name) : { text: code };
  let body = text.replace(/^#!/, '//');
  let imports = '';
  if (/\b(?:import|export|const)\b/.test(body)) {
    let rest = '';
    let end = 0;
    for (const edit of scan(body)) {
      const old = body.slice(edit.start, edit.end);
      rest += body.slice(end, edit.start);
      rest += edit.text === undefined ? blank(old) : edit.text + blank(old.slice(edit.text.length));
      if (edit.load) imports += load(edit.load);
      end = edit.end;
    }
    body = rest + body.slice(end);
  }
  const strict = /^\s*(?:'use strict'|"use strict")/.test(body) ? "'use strict';" : '';
  const head = strict + START + imports;
  return { text: head + body, head: head.length, map };
}

module.exports = { prepare };
