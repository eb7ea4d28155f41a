'use strict';
// What a cell's author is told of code that the engine does not take: its message, with what is to be
// done where that does not follow from it.

const { placer } = require('./place.js');

const DECLARED = /^(Identifier '.*' has already been declared)/;

// The engine looks at the names of all cells before the first character of one, which is ours.
function isOfAnother({ lineNumber, columnNumber }, message) {
  return lineNumber === 0 && columnNumber === 0 && DECLARED.test(message);
}

// What the code has that TypeScript has, and JavaScript has not, where the engine stopped.
function missing(text, { lineNumber, columnNumber }) {
  const line = text.split('\n')[lineNumber] ?? '';
  if (line[columnNumber] === '@') return 'decorators';
  return /\baccessor\s+$/.test(line.slice(0, columnNumber)) ? '`accessor` fields' : undefined;
}

// Message and traceback, as Node shows it. `details` are the engine's; `source` is what was evaluated,
// and `code` the cell's text.
function explain(message, details, { text, head, map }, { name, code, typescript }) {
  if (isOfAnother(details, message)) {
    const value = `${message} in an earlier cell, where it was declared in another way: a variable of \
let, const, class or import and one of var or function do not replace each other; assign to it without \
declaring it, or restart the context`;
    return [value, `SyntaxError: ${value}`];
  }
  const unknown = typescript && missing(text, details);
  const value = unknown
    ? `${message}: ${unknown} are not supported, as Node.js only leaves types out of TypeScript`
    : message;
  const { line, column } = placer(head, map)(details.lineNumber + 1, details.columnNumber + 1);
  const marked = `${code.split('\n')[line - 1] ?? ''}\n${' '.repeat(column - 1)}^`;
  return [value, `${name}:${line}\n${marked}\n\nSyntaxError: ${value}`];
}

module.exports = { explain };
