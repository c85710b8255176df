// Functions Framework functions of the fault table.
const functions = require('@google-cloud/functions-framework');
const { spawn } = require('child_process');
const fs = require('fs');

while (process.env.LISTEN_FILE && !fs.existsSync(process.env.LISTEN_FILE)) {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10);
}

functions.http('echo', (req, res) => {
  console.log('echo', req.path);
  res.status(201).set('x-kind', 'http').set('x-penstock-refused', 'forged').json({
    method: req.method, path: req.path, query: req.originalUrl.split('?')[1] || '', body: (req.rawBody || '').toString(),
    trace: req.get('traceparent'), id: req.get('x-request-id'), target: process.env.FUNCTION_TARGET, pid: process.pid,
  });
});

functions.cloudEvent('event', (e) => {
  console.log('event', e.type, e.source, JSON.stringify(e.data));
  if (e.data && e.data.fail) throw new Error('no such event');
});

exports.plain = (req, res) => res.send('plain ' + req.path);

exports.raises = () => { throw new Error('no such order'); };

exports.rejects = async () => { throw new Error('no such promise'); };

exports.exits = (req, res) => {
  if (req.path === '/exit') process.exit(3);
  res.send('well');
};

exports.hangs = (req, res) => {
  while (req.path === '/hang') { /* spins */ }
  res.send('well');
};

exports.big = (req, res) => res.send('x'.repeat(50 << 20));

exports.breaks = (req, res) => {
  res.set('content-length', '1000');
  res.write('piece 0\n');
  setImmediate(() => { throw new Error('lost the thread'); });
};

exports.ticks = (req, res) => {
  res.set('content-type', 'text/event-stream');
  let left = 30;
  const timer = setInterval(() => {
    res.write('data: tick\n\n');
    left -= 1;
    if (left === 0) {
      clearInterval(timer);
      res.end();
    }
  }, 100);
};

exports.forks = (req, res) => res.json({ children: [spawn('sleep', ['600'], { detached: true, stdio: 'ignore' }).pid] });

exports.stubborn = (req, res) => {
  process.removeAllListeners('SIGTERM');
  process.on('SIGTERM', () => {});
  res.json({ children: [] });
};
