// Templates with the JavaScript SDK: builder, build, status, logs, tags, failures.

import { randomUUID } from 'node:crypto'
import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'

import {
  BuildError,
  LogEntryEnd,
  LogEntryStart,
  Sandbox,
  Template,
  waitForFile,
  waitForPort,
  waitForProcess,
  waitForTimeout,
  waitForURL,
} from 'e2b'
import { describe, expect, onTestFinished, test } from 'vitest'

import { before, get, hostOf, until } from './support'

type Buildable = Parameters<typeof Template.build>[0]
type Options = Parameters<typeof Template.build>[2]

// A template belongs to its test; so do sandboxes of it, which must end first.
const SLOW = 600_000

function send(method: string, path: string, body?: object): Promise<Response> {
  return fetch(new URL(path, process.env.E2B_API_URL), {
    method,
    headers: {
      'X-API-Key': process.env.E2B_API_KEY ?? '',
      ...(body && { 'Content-Type': 'application/json' }),
    },
    body: body && JSON.stringify(body),
  })
}

/** A name that no template has; one that gets it is deleted after the test. */
function newName(): string {
  const name = `conformance-js-${randomUUID().slice(0, 12)}`
  onTestFinished(async () => {
    const answer = await send('DELETE', `/templates/${name}`)
    expect([204, 404]).toContain(answer.status)
  })
  return name
}

async function build(template: Buildable, name = newName(), options: Options = {}) {
  const messages: string[] = []
  const info = await Template.build(template, name, {
    onBuildLogs: (entry) => messages.push(entry.message),
    ...options,
  })
  return { ...info, name, messages }
}

async function createFrom(template: string): Promise<Sandbox> {
  const sandbox = await Sandbox.create(template, { timeoutMs: 120_000 })
  onTestFinished(async () => void (await sandbox.kill()))
  return sandbox
}

const run = async (sandbox: Sandbox, command: string) => (await sandbox.commands.run(command)).stdout

const base = () => Template().fromBaseImage()

/** What the API says of a build that has ended. */
async function ended(info: { templateId: string; buildId: string }) {
  return until(
    'the end of the build',
    async () => {
      const path = `/templates/${info.templateId}/builds/${info.buildId}/status`
      const status = await (await send('GET', path)).json()
      return ['ready', 'error'].includes(status.status) ? status : undefined
    },
    SLOW,
  )
}

/** A directory with these files, which goes with the test. */
function context(files: Record<string, string>): string {
  const directory = mkdtempSync(join(tmpdir(), 'atoll-js-'))
  onTestFinished(() => rmSync(directory, { recursive: true }))
  for (const [name, text] of Object.entries(files)) {
    mkdirSync(join(directory, dirname(name)), { recursive: true })
    writeFileSync(join(directory, name), text)
  }
  return directory
}

describe('steps', { timeout: SLOW }, () => {
  test('each method of the builder', async () => {
    const { name } = await build(
      base()
        .setEnvs({ GREETING: 'hello', WHOLE: '$GREETING-${HOME}' })
        .runCmd('echo "$GREETING $(id -un) $PWD" > said')
        .runCmd(['cd /tmp', 'pwd > /home/user/joined'])
        .runCmd('id -un > /who', { user: 'root' })
        .makeDir('/home/user/made', { mode: 0o700 })
        .makeDir(['/home/user/a', '/home/user/b'])
        .runCmd('touch a/x b/y')
        .rename('/home/user/a/x', '/home/user/a/z')
        .remove('/home/user/b', { recursive: true, force: true })
        .makeSymlink('/home/user/said', '/home/user/link')
        .runCmd('git init -q -b main o && git -C o -c user.name=A -c user.email=a@b commit -q --allow-empty -m 1')
        .gitClone('file:///home/user/o', '/home/user/clone', { branch: 'main', depth: 1 })
        .setWorkdir('/srv/work')
        .setUser('worker')
        .runCmd('id -un > ~/who'),
    )
    const sandbox = await createFrom(name)
    expect(await run(sandbox, 'id -un; pwd; cat ~/who /who')).toBe('worker\n/srv/work\nworker\nroot\n')
    const asUser = async (command: string) =>
      (await sandbox.commands.run(command, { user: 'user', cwd: '/home/user' })).stdout
    expect(await asUser('cat said joined link')).toBe(
      'hello user /home/user\n/tmp\nhello user /home/user\n',
    )
    expect(await asUser('ls; stat -c %a made; ls a; git -C clone rev-list --count HEAD')).toBe(
      'a\nclone\njoined\nlink\nmade\no\nsaid\n700\nz\n1\n',
    )
  })

  test('files', async () => {
    const directory = context({
      // Other runs, with the other SDK, upload files too.
      'one.txt': randomUUID(),
      'two.txt': 'two',
      'dir/sub/tool': '#!/bin/sh\necho runs\n',
      'dir/skip.log': 'log',
      '.dockerignore': '*.log\n**/*.log\n',
      'secret.env': 'secret',
    })
    chmodSync(join(directory, 'dir/sub/tool'), 0o755)
    symlinkSync('sub/tool', join(directory, 'dir/link'))
    const { name, messages } = await build(
      Template({ fileContextPath: directory, fileIgnorePatterns: ['secret.env'] })
        .fromBaseImage()
        .copy('one.txt', '/home/user/renamed')
        .copy(['one.txt', 'two.txt'], '/home/user/both/')
        .copy('*.txt', '/home/user/matched/')
        .copy('dir', '/home/user/dir')
        .copyItems([{ src: 'two.txt', dest: '/srv/owned', user: 'root', mode: 0o600 }])
        .runCmd('dir/sub/tool > said; wc -c < renamed > size'),
    )
    expect(messages.some((message) => message.includes("Uploaded 'one.txt'"))).toBe(true)
    const sandbox = await createFrom(name)
    expect(await run(sandbox, 'ls both matched; cat size said; readlink dir/link')).toBe(
      'both:\none.txt\ntwo.txt\n\nmatched:\none.txt\ntwo.txt\n36\nruns\nsub/tool\n',
    )
    expect(await run(sandbox, 'sudo stat -c "%a %U" /srv/owned; ls -A dir')).toBe(
      '600 root\nlink\nsub\n',
    )
  })

  test('files that are missing', async () => {
    const directory = context({ there: 'x' })
    const template = Template({ fileContextPath: directory }).fromBaseImage()
    await expect(build(template.copy('missing', '/home/user/'))).rejects.toThrow(/No files found/)
  })

  test('a Dockerfile', async () => {
    const directory = context({ 'app/file': 'copied\n' })
    const image = process.env.ATOLL_TEST_IMAGE ?? 'e2bdev/base'
    const { name } = await build(
      Template({ fileContextPath: directory }).fromDockerfile(
        `FROM ${image}
ENV NAME=app GREETING=hello
RUN echo "$NAME $GREETING $(id -un)" > /built
WORKDIR /srv/app
COPY app ./
USER worker
`,
      ),
    )
    const sandbox = await createFrom(name)
    expect(await run(sandbox, 'cat /built; id -un; pwd; cat file')).toBe(
      'app hello root\nworker\n/srv/app\ncopied\n',
    )
  })

  test('from another template', async () => {
    const below = await build(base().runCmd('echo below > level'))
    const above = await build(Template().fromTemplate(below.name).runCmd('cat level > copied'))
    expect(await (await createFrom(above.name)).files.read('copied')).toBe('below\n')
    expect(above.templateId).not.toBe(below.templateId)
  })
})

describe('start commands', { timeout: SLOW }, () => {
  const SERVE = 'mkdir -p www && echo served > www/it && cd www && exec python3 -m http.server 8000'

  test.each([
    ['port', waitForPort(8000)],
    ['url', waitForURL('http://localhost:8000/it')],
  ])('the first request is answered: %s', async (_, ready) => {
    const { name } = await build(base().setStartCmd(SERVE, ready))
    const sandbox = await createFrom(name)
    expect(await get(hostOf(sandbox, 8000), '/it')).toEqual({ status: 200, body: 'served\n' })
  })

  test.each([
    ['file', waitForFile('/tmp/ready')],
    ['process', waitForProcess('sleep')],
    ['timeout', waitForTimeout(1000)],
  ])('other ways to be ready: %s', async (_, ready) => {
    const { name } = await build(base().setStartCmd('touch /tmp/ready; exec sleep 1000', ready))
    expect(await run(await createFrom(name), 'pgrep -x sleep | wc -l')).not.toBe('0\n')
  })

  test('a ready command alone', async () => {
    const { name } = await build(base().setReadyCmd('touch /home/user/asked'))
    expect(await (await createFrom(name)).files.exists('/home/user/asked')).toBe(true)
  })

  test('one that fails', async () => {
    const failed = build(base().setStartCmd('echo no-luck >&2; exit 3', waitForPort(8000)))
    await expect(failed).rejects.toThrow(/no-luck/)
  })
})

describe('builds', { timeout: SLOW }, () => {
  test('logs are streamed', async () => {
    const entries: Array<{ timestamp: Date; level: string; message: string }> = []
    const name = newName()
    await Template.build(base().runCmd('echo hello; echo oops >&2'), name, {
      skipCache: true,
      onBuildLogs: (entry) => entries.push(entry),
    })
    expect(entries[0]).toBeInstanceOf(LogEntryStart)
    expect(entries.at(-1)).toBeInstanceOf(LogEntryEnd)
    for (const { timestamp, level } of entries) {
      expect(timestamp).toBeInstanceOf(Date)
      expect(['debug', 'info', 'warn', 'error']).toContain(level)
    }
    const messages = entries.map((entry) => entry.message)
    for (const line of [
      /^\[base\] FROM /,
      /^\[builder \d+\/\d+\] RUN echo hello/,
      /^\[builder \d+\/\d+\] \[stdout\]: hello$/,
      /^\[builder \d+\/\d+\] \[stderr\]: oops$/,
      /^Build finished/,
    ]) {
      expect(messages).toContainEqual(expect.stringMatching(line))
    }
  })

  // Before, the SDK left what the last page did not have.
  test.skipIf(before('2.51.0'))('a long log is whole', async () => {
    const { messages } = await build(base().runCmd("seq -f 'line %g.' 350"), newName(), {
      skipCache: true,
    })
    const lines = messages.flatMap((message) => message.match(/\[stdout\]: line (\d+)\.$/)?.[1] ?? [])
    expect(lines.map(Number)).toEqual(Array.from({ length: 350 }, (_, i) => i + 1))
  })

  test('in the background', async () => {
    const name = newName()
    const info = await Template.buildInBackground(base().runCmd('sleep 10; touch made'), name, {
      skipCache: true,
    })
    expect((await Template.getBuildStatus(info)).status).toBe('building')
    const done = await until(
      'the build',
      async () => {
        const status = await Template.getBuildStatus(info, { logsOffset: 0 })
        return status.status === 'building' ? undefined : status
      },
      SLOW,
    )
    expect(done).toMatchObject({ status: 'ready', buildID: info.buildId })
    expect(done.logEntries.length).toBeGreaterThan(0)
    expect(await (await createFrom(name)).files.exists('made')).toBe(true)
  })

  test('what is unchanged is not done again', async () => {
    const once = 'cat /proc/sys/kernel/random/uuid > id'
    const name = newName()
    const template = () => base().setEnvs({ SALT: name }).runCmd(once)
    await build(template(), name)
    const first = await (await createFrom(name)).files.read('id')
    const again = await build(template().runCmd('true'), name)
    expect(again.messages).toContainEqual(
      expect.stringMatching(/^CACHED \[builder \d+\/\d+\] RUN cat/),
    )
    expect(await (await createFrom(name)).files.read('id')).toBe(first)
    await build(template(), name, { skipCache: true })
    expect(await (await createFrom(name)).files.read('id')).not.toBe(first)
    await build(base().setEnvs({ SALT: name }).skipCache().runCmd(once), name)
    expect(await (await createFrom(name)).files.read('id')).not.toBe(first)
  })

  test('processors and memory', async () => {
    const { name } = await build(base(), newName(), { cpuCount: 1, memoryMB: 512 })
    expect(await (await createFrom(name)).getInfo()).toMatchObject({ cpuCount: 1, memoryMB: 512 })
    await expect(build(base(), newName(), { cpuCount: 3 })).rejects.toThrow(
      /CPU count must be 1 or an even number/,
    )
  })

  test('whether one exists', async () => {
    const { name } = await build(base())
    expect(await Template.exists(name)).toBe(true)
    expect(await Template.exists('base')).toBe(true)
    expect(await Template.exists(`${name}-not`)).toBe(false)
    expect(await Template.aliasExists(name)).toBe(true)
  })

  test('published and not', async () => {
    const { name, templateId } = await build(base())
    for (const visible of [true, false]) {
      const answer = await send('PATCH', `/v2/templates/${name}`, { public: visible })
      expect(answer.status).toBe(200)
      const alias = await (await send('GET', `/templates/aliases/${name}`)).json()
      expect(alias).toEqual({ templateID: templateId, public: visible })
    }
  })
})

describe('tags', { timeout: SLOW }, () => {
  const version = (number: number) => base().runCmd(`echo ${number} > version`)
  const read = async (reference: string) =>
    (await (await createFrom(reference)).files.read('version')).trim()

  test('are given, moved and removed', async () => {
    const name = newName()
    const one = await build(version(1), `${name}:v1`)
    const two = await build(version(2), name, { tags: ['v2', 'stable'] })
    expect(two.templateId).toBe(one.templateId)
    const assigned = async () =>
      Object.fromEntries((await Template.getTags(name)).map((tag) => [tag.tag, tag.buildId]))
    expect(await assigned()).toEqual({ v1: one.buildId, v2: two.buildId, stable: two.buildId })
    expect([await read(`${name}:v1`), await read(`${name}:stable`)]).toEqual(['1', '2'])
    const moved = await Template.assignTags(`${name}:v1`, ['stable', 'old'])
    expect(moved.buildId).toBe(one.buildId)
    expect(moved.tags.toSorted()).toEqual(['old', 'stable'])
    expect(await read(`${name}:stable`)).toBe('1')
    await Template.removeTags(name, ['old', 'never-there'])
    expect(Object.keys(await assigned()).toSorted()).toEqual(['stable', 'v1', 'v2'])
    await expect(createFrom(`${name}:old`)).rejects.toThrow(/tag 'old' does not exist/)
  })

  test.each([':x', 'x:', '', randomUUID()])('%j is none', async (tag) => {
    const { name } = await build(base())
    await expect(Template.assignTags(name, tag)).rejects.toThrow(/400/)
  })

  test('builds with different tags go on side by side', async () => {
    const name = newName()
    const numbers = [1, 2, 3]
    const built = await Promise.all(numbers.map((i) => build(version(i), `${name}:v${i}`)))
    expect(new Set(built.map((each) => each.templateId)).size).toBe(1)
    for (const i of numbers) expect(await read(`${name}:v${i}`)).toBe(`${i}`)
  })

  test('a newer build of the same takes the place of an older', async () => {
    const name = newName()
    const older = await Template.buildInBackground(base().runCmd('sleep 3600'), name)
    await build(version(2), name)
    const status = await ended(older)
    expect(status.status).toBe('error')
    expect(status.reason.message).toBe(
      'The build was canceled because it was superseded by a newer one.',
    )
    expect(await read(name)).toBe('2')
  })
})

describe('failures', { timeout: SLOW }, () => {
  /** The error, and what the API says of its build. */
  async function fails(template: Buildable) {
    const name = newName()
    let ids: { templateId: string; buildId: string } | undefined
    const error = await Template.build(template, name, {
      onBuildLogs: ({ message }) => {
        const found = message.match(/Template created with ID: (\S+), Build ID: (\S+)/)
        if (found) ids = { templateId: found[1], buildId: found[2] }
      },
    }).then(
      () => undefined,
      (error: unknown) => error,
    )
    expect(error).toBeInstanceOf(BuildError)
    if (!ids) throw new Error('it was not even registered')
    const { reason } = await ended(ids)
    expect((error as BuildError).message).toContain(reason.message)
    return { error: error as BuildError, reason }
  }

  test('a command', async () => {
    const { reason, error } = await fails(
      base().runCmd('true').runCmd('echo so-far; echo so-bad >&2; exit 7'),
    )
    expect(reason.step).toBe('2')
    expect(reason.message).toContain('so-bad')
    expect(reason.message.replace('exit 7', '')).toContain('7')
    expect(error.stack).toContain('templates.test')
  })

  test('a template to start from', async () => {
    const { reason } = await fails(Template().fromTemplate('no-such-template'))
    expect(reason.step).toBe('base')
    expect(reason.message).toContain('no-such-template')
  })

  test.skipIf(!process.env.ATOLL_TEST_IMAGE)('an image', async () => {
    const image = `${process.env.ATOLL_TEST_IMAGE}-not-there`
    const { reason } = await fails(Template().fromImage(image).runCmd('true'))
    expect(reason.step).toBe('base')
  })

  test('a start command', async () => {
    const { reason } = await fails(base().runCmd('true').setStartCmd('exit 5', 'false'))
    expect(reason.step).toBe('finalize')
    expect(reason.message).toContain('5')
  })
})

test.skipIf(!process.env.ATOLL_TEST_IMAGE)(
  'an image of a registry',
  { timeout: SLOW },
  async () => {
    const { name } = await build(Template().fromImage(process.env.ATOLL_TEST_IMAGE ?? ''))
    const sandbox = await createFrom(name)
    expect(await run(sandbox, 'id -un; pwd; . /etc/os-release; echo $ID')).toBe(
      'user\n/home/user\nalpine\n',
    )
  },
)

test.skipIf(before('2.51.0'))('archives without compression', { timeout: SLOW }, async () => {
  const template = Template({ fileContextPath: context({ file: 'plain' }) }).fromBaseImage()
  const { name } = await build(template.copy('file', '/home/user/file', { gzip: false } as object))
  expect(await (await createFrom(name)).files.read('file')).toBe('plain')
})
