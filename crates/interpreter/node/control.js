'use strict';
// The thread that has cells run in the main thread, through its inspector, and interrupts them.
//
// Commands come as lines of JSON on descriptor 3: `{ number, code, typescript, hidden }` for a cell, and
// `{ interrupt: true }`.

const { Session } = require('node:inspector');
const { Socket } = require('node:net');
const { parentPort } = require('node:worker_threads');

const { prepare } = require('./source.js');
const { explain } = require('./unreadable.js');

const COMMANDS = 3;
const HEARS_WITHIN = 100; // milliseconds
const ENDS_WITHIN = 200; // milliseconds, after that

const session = new Session();
session.connectToMainThread();

let cells; // how the inspector calls the object in runner.js that is told

function tell(method, ...values) {
  session.post('Runtime.callFunctionOn', {
    objectId: cells,
    functionDeclaration: `function (...values) { this.${method}(...values); }`,
    arguments: values,
  });
}

// What the inspector gave, to be handed back to it.
function same({ objectId, unserializableValue, value }) {
  if (objectId) return { objectId };
  return unserializableValue ? { unserializableValue } : { value };
}

let begun = 0; // cells, hidden ones too
let waits; // for the main thread to hear of an interrupt

function run({ number, code, typescript, hidden }) {
  // Whatever was to be interrupted is over.
  clearTimeout(waits);
  begun += 1;
  const cell = { value: begun };
  const name = hidden ? '<hidden>' : `<cell-${number}>`;
  const fail = (kind, value, traceback) => tell('failed', cell, { value: { name: kind, value, traceback } });
  let source;
  try {
    source = prepare(code, typescript && !hidden, name);
  } catch (error) {
    tell('begin', cell, { value: true });
    fail(error.name, error.message, error.stack);
    return;
  }
  const { text, head, map } = source;
  const values = [begun, hidden, name, head, map];
  tell('begin', ...values.map((value) => ({ value })));
  const expression = `${text}\n//# sourceURL=${name}`;
  session.post('Runtime.evaluate', { expression, replMode: true }, (error, answer) => {
    // What was printed with console is kept for a debugger that might come: it is not to.
    session.post('Runtime.discardConsoleEntries');
    if (error) {
      // Its promise was collected: nothing is left that could go on.
      const value = 'the cell waits for something that cannot happen any more';
      fail('Error', value, `Error: ${value}`);
      return;
    }
    const { result, exceptionDetails } = answer;
    if (!exceptionDetails) tell('returned', cell, same(result));
    else if (result.className === 'SyntaxError' && exceptionDetails.scriptId) {
      const message = result.description.split('\n', 1)[0].replace(/^SyntaxError: /, '');
      fail('SyntaxError', ...explain(message, exceptionDetails, source, { name, code, typescript }));
    } else tell('threw', cell, same(result));
    if (result.objectId) session.post('Runtime.releaseObject', { objectId: result.objectId });
  });
}

// If the main thread hears a message, its cell waits for something, and it lets go of it by itself. If
// not, it is busy: JavaScript is terminated, and a program that is waited for in the midst of it
// (execSync) gets the signal that Ctrl-C sends.
function interrupt() {
  const cell = begun;
  clearTimeout(waits);
  parentPort.postMessage(cell);
  waits = setTimeout(() => {
    waits = setTimeout(() => process.kill(0, 'SIGINT'), ENDS_WITHIN);
    tell('forgetCallbacks');
    session.post('Runtime.terminateExecution', () => {
      clearTimeout(waits);
      parentPort.postMessage(cell);
    });
  }, HEARS_WITHIN);
}

parentPort.on('message', () => clearTimeout(waits));

session.post('Runtime.evaluate', { expression: '$cells' }, (_error, { result }) => {
  cells = result.objectId;
  tell('ready');
  session.post('Runtime.evaluate', { expression: 'delete globalThis.$cells' });
  let rest = '';
  const commands = new Socket({ fd: COMMANDS, readable: true, writable: false });
  commands.setEncoding('utf8');
  commands.on('data', (text) => {
    const lines = text.split('\n');
    lines[0] = rest + lines[0];
    rest = lines.pop();
    for (const line of lines) {
      const command = JSON.parse(line);
      if (command.interrupt) interrupt();
      else run(command);
    }
  });
  // Nobody is left to run cells for.
  commands.on('end', () => process.kill(process.pid, 'SIGKILL'));
});
