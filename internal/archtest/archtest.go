// Package archtest holds the test that keeps the import directions of
// ARCHITECTURE.md true. It has no code of its own.
package archtest
