const isNumber = require('is-number');

exports.check = (req, res) => res.json({ seven: isNumber('7'), from: require.resolve('is-number') });
