// Command bad does not compile.
package main

func main() { undefinedFunction() }
