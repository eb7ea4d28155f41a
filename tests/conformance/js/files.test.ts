import { randomBytes } from 'node:crypto'

import { FilesystemEventType, NotFoundError, type FilesystemEvent, type Sandbox } from 'e2b'
import { beforeAll, expect, test } from 'vitest'

import { get, hostOf, shared, until } from './support'

let sandbox: Sandbox
beforeAll(async () => {
  sandbox = await shared()
  return () => sandbox.kill()
})

// Rules: GET-18, PUT-24
test('text, bytes, blobs and streams', async () => {
  const content = new Uint8Array(randomBytes(100_000))
  await sandbox.files.write('text.txt', 'grüße')
  expect(await sandbox.files.read('text.txt')).toBe('grüße')
  await sandbox.files.write('content.bin', content.buffer)
  expect(await sandbox.files.read('content.bin', { format: 'bytes' })).toEqual(content)
  const blob = await sandbox.files.read('content.bin', { format: 'blob' })
  expect(new Uint8Array(await blob.arrayBuffer())).toEqual(content)
  const stream = await sandbox.files.read('content.bin', { format: 'stream' })
  expect(new Uint8Array(await new Response(stream).arrayBuffer())).toEqual(content)
})

// Rules: PUT-9
test('what a write answers', async () => {
  const info = await sandbox.files.write('answer.txt', 'x')
  expect(info).toMatchObject({ name: 'answer.txt', path: '/home/user/answer.txt', type: 'file' })
})

// Rules: GET-15
test('empty files', async () => {
  await sandbox.files.write('empty', '')
  expect(await sandbox.files.read('empty')).toBe('')
  expect(await sandbox.files.read('empty', { format: 'bytes' })).toEqual(new Uint8Array())
})

test('fifty megabytes', async () => {
  const content = new Uint8Array(50_000_000).fill(7)
  await sandbox.files.write('large.bin', content.buffer)
  const read = await sandbox.files.read('large.bin', { format: 'bytes' })
  expect(Buffer.compare(read, content)).toBe(0)
  await sandbox.files.remove('large.bin')
})

// Rules: PUT-3, PUT-24
test('several at once', async () => {
  await sandbox.files.write([
    { path: 'several/one', data: 'one' },
    { path: 'several/deeper/zwei ü.txt', data: 'two' },
  ])
  expect(await sandbox.files.read('several/one')).toBe('one')
  expect(await sandbox.files.read('several/deeper/zwei ü.txt')).toBe('two')
})

// Rules: DIR-1, DIR-8, DIR-9, LIST-5
test('directories', async () => {
  expect(await sandbox.files.makeDir('dir/sub')).toBe(true)
  expect(await sandbox.files.makeDir('dir/sub')).toBe(false)
  await sandbox.files.write('dir/file', 'x')
  const entries = await sandbox.files.list('dir')
  expect(entries.map((entry) => [entry.name, entry.type])).toEqual([
    ['file', 'file'],
    ['sub', 'dir'],
  ])
  await sandbox.files.rename('dir/file', 'dir/renamed')
  expect(await sandbox.files.exists('dir/file')).toBe(false)
  expect((await sandbox.files.getInfo('dir/renamed')).size).toBe(1)
  await sandbox.files.remove('dir')
  expect(await sandbox.files.exists('dir')).toBe(false)
})

// Rules: GET-4, LIST-7, STAT-2
test('what is not there', async () => {
  await expect(sandbox.files.read('not-there')).rejects.toThrow(NotFoundError)
  await expect(sandbox.files.list('/not/there')).rejects.toThrow(NotFoundError)
  await expect(sandbox.files.getInfo('not-there')).rejects.toThrow(NotFoundError)
})

// Rules: WATCH-5, WATCH-16, WATCH-21
test('watching a directory', async () => {
  const events: FilesystemEvent[] = []
  await sandbox.files.makeDir('watched')
  const watch = await sandbox.files.watchDir('watched', (event) => void events.push(event), {
    recursive: true,
  })
  await sandbox.files.write('watched/file', 'x')
  await until('three events', async () => events.length >= 3)
  expect(events.map((event) => [event.name, event.type])).toEqual([
    ['file', FilesystemEventType.CREATE],
    ['file', FilesystemEventType.CHMOD],
    ['file', FilesystemEventType.WRITE],
  ])
  await watch.stop()
})

// Rules: SIGN-13, GET-1, TRAP-6
test('signed links need no token, and wrong ones are refused', async () => {
  await sandbox.files.write('signed ü.txt', 'for whoever has the link')
  const follow = (link: string) => {
    const url = new URL(link)
    return get(hostOf(sandbox, 49983), url.pathname + url.search)
  }
  const options = { useSignatureExpiration: 60 }
  const link = await sandbox.downloadUrl('signed ü.txt', options)
  expect(await follow(link)).toEqual({ status: 200, body: 'for whoever has the link' })
  const expired = await sandbox.downloadUrl('signed ü.txt', { useSignatureExpiration: -10_000 })
  const answer = await follow(expired)
  expect(JSON.parse(answer.body)).toEqual({ code: 401, message: 'signature is already expired' })
})
