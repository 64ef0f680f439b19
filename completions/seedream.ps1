# Completion of seedream for PowerShell. Made by `python -m tests.test_completion`.
Register-ArgumentCompleter -Native -CommandName seedream -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)
    $line = $commandAst.ToString()
    $length = $cursorPosition - $commandAst.Extent.StartOffset
    if ($length -gt $line.Length) { $line += ' ' } else { $line = $line.Substring(0, $length) }
    # Where files go nothing is returned, and PowerShell offers files itself.
    & $commandAst.GetCommandName() --complete powershell $line 2>$null | Select-Object -Skip 1 | ForEach-Object {
        $word, $text = $_ -split "`t", 2
        if (-not $text) { $text = $word }
        [System.Management.Automation.CompletionResult]::new($word, $word, 'ParameterValue', $text)
    }
}
